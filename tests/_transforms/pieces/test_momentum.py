"""trace: the decayed sum and its dtype; sgd with momentum."""

import mlx.core as mx
import pytest

from purestep.optimizers import sgd
from purestep.transforms import trace
from tests.refusals import BAD_NUMBERS, parts
from tests.running import run


def test_the_update_is_the_decayed_sum_of_the_gradients():
    updates, state = run(trace(0.5), [1.0, 2.0, 4.0])
    assert [update.item() for update in updates] == [1.0, 2.5, 5.25]
    assert state.trace["w"].item() == 5.25


def test_nesterov_adds_the_gradient_once_more_and_leaves_the_sum_alone():
    updates, state = run(trace(0.5, nesterov=True), [1.0, 2.0, 4.0])
    assert [update.item() for update in updates] == [1.5, 3.25, 6.625]
    assert state.trace["w"].item() == 5.25


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_decay_the_gradient_passes(nesterov):
    updates, _ = run(trace(0.0, nesterov), [1.0, 2.0, 4.0])
    assert [update.item() for update in updates] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_sum_of_bfloat16_gradients_is_float32_and_so_is_the_update(nesterov):
    assert trace(0.5).init({"w": mx.array(0.0, mx.bfloat16)}).trace["w"].dtype == mx.float32
    updates, state = run(trace(0.5, nesterov), [1.0, 2.0**-8], mx.bfloat16)
    assert (state.trace["w"].dtype, updates[-1].dtype) == (mx.float32, mx.float32)
    assert state.trace["w"].item() == 0.5 + 2.0**-8


def test_a_sum_stored_in_bfloat16_decays_in_float32():
    stored = mx.array(0.1, mx.bfloat16)
    transform = trace(0.9, accumulator_dtype=mx.bfloat16)
    updates, _ = transform.update(
        {"w": mx.array(0.0)}, transform.init({"w": stored})._replace(trace={"w": stored})
    )
    assert updates["w"].item() == pytest.approx(0.9 * stored.item(), rel=1e-6)


def test_a_long_sum_of_bfloat16_gradients_does_not_stall():
    _, state = run(trace(0.999), [1.0] * 400, mx.bfloat16)  # in bfloat16 it would stay at 256
    assert state.trace["w"].item() == pytest.approx((1 - 0.999**400) / 0.001, rel=1e-5)


def test_the_sum_is_stored_in_the_accumulator_dtype_and_the_update_made_before_it_is_rounded():
    transform = trace(0.5, accumulator_dtype=mx.bfloat16)
    updates, state = run(transform, [1.0 + 2.0**-10])
    assert (updates[0].dtype, updates[0].item()) == (mx.float32, 1.0 + 2.0**-10)
    assert (state.trace["w"].dtype, state.trace["w"].item()) == (mx.bfloat16, 1.0)
    assert transform.init({"w": mx.array(0.0)}).trace["w"].dtype == mx.bfloat16


def test_sgd_with_momentum_steps_against_the_decayed_sum():
    updates, _ = run(sgd(0.5, momentum=0.5), [1.0, 2.0])
    assert [update.item() for update in updates] == [-0.5, -1.25]


def test_sgd_passes_its_options_to_the_trace():
    updates, state = run(sgd(0.5, momentum=0.5, nesterov=True, accumulator_dtype=mx.float16), [1.0, 2.0])
    assert [update.item() for update in updates] == [-0.75, -1.625]
    assert state[0].trace["w"].dtype == mx.float16


def test_sgd_without_momentum_keeps_no_copy_of_the_parameters():
    updates, state = run(sgd(0.5), [1.0, 2.0])
    assert [update.item() for update in updates] == [-0.5, -1.0]
    assert state[0] == ()


@pytest.mark.parametrize(
    ("decay", "error", "message"),
    [
        (1.5, ValueError, "... 1, got 1.5"),
        (-0.1, ValueError, "... 0, got -0.1"),
        *BAD_NUMBERS,
    ],
)
def test_a_bad_decay_is_refused(decay, error, message):
    with pytest.raises(error, match=parts(f"trace: decay {message}")):
        trace(decay)


def test_a_decay_of_one_sums_all_gradients():
    updates, _ = run(trace(1.0), [1.0, 2.0, 4.0])
    assert updates[-1].item() == 7.0
