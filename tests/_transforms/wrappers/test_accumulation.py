"""accumulate, flush and apply_every: exact weighted means, and sums, of the gradients of several steps."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import schedules, transforms, tree
from purestep.transforms import accumulate, apply_every, flush, scale
from tests.refusals import parts
from tests.running import run_through


def weighted(transform, gradients, weights=None, dtype=mx.float32):
    """Return the updates and the states after each of these gradients, of this weight or of none."""
    extras = None if weights is None else [{"weight": mx.array(weight)} for weight in weights]
    return run_through(transform, gradients, dtype, extras=extras)


def numbers(arrays):
    return [array.item() for array in arrays]


def equal(first, second):
    """Tell whether two trees hold the same numbers."""
    pairs = zip(tree.items(first), tree.items(second), strict=True)
    return all(a == b and mx.array_equal(x, y).item() for (a, x), (b, y) in pairs)


def test_the_update_is_that_of_the_mean_gradient():
    updates, _ = weighted(accumulate(scale(-1.0), every=3), [1.0, 2.0, 6.0, 4.0, 5.0, 9.0])
    assert numbers(updates) == [0, 0, -3, 0, 0, -6]


@pytest.mark.parametrize("unit", [1, 0.125, 1024.0])
def test_each_gradient_counts_by_its_weight(unit):
    weights = [1 * unit, 3 * unit, 3 * unit, 1 * unit]
    updates, _ = weighted(accumulate(scale(-1.0), every=2), [1.0, 5.0, 8.0, 0.0], weights)
    assert numbers(updates) == [0, -4, 0, -6]


def test_ragged_steps_give_the_gradient_of_all_their_tokens_together():
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(count, 4)).astype(np.float32) for count in (1, 3, 257)]
    means, counts = [part.mean(axis=0) for part in tokens], [float(len(part)) for part in tokens]
    updates, _ = weighted(accumulate(scale(1.0), every=3), means, weights=counts)
    np.testing.assert_allclose(updates[-1], np.concatenate(tokens).mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_gradient_without_weight_does_not_count():
    updates, _ = weighted(accumulate(scale(-1.0), every=2), [7.0, 5.0], weights=[0.0, 2.0])
    assert updates[-1].item() == -5


def test_no_weight_at_all_gives_a_gradient_of_zero_and_not_nan():
    updates, _ = weighted(
        accumulate(scale(-1.0), every=2), [7.0, 5.0, 1.0, 3.0], weights=[0.0, 0.0, 1.0, 1.0]
    )
    assert numbers(updates) == [0, 0, 0, -2]


def test_the_inner_state_is_unchanged_between_updates():
    _, states = weighted(accumulate(ps.optimizers.adam(0.1), every=3), [1.0, 2.0, 6.0, 4.0])
    start = accumulate(ps.optimizers.adam(0.1), every=3).init({"w": mx.array(0.0)}).inner
    assert equal(states[0].inner, start)
    assert equal(states[1].inner, start)
    assert not equal(states[2].inner, start)
    assert equal(states[3].inner, states[2].inner)


def test_the_inner_state_after_an_update_is_that_of_the_mean_gradient():
    _, states = weighted(accumulate(ps.optimizers.adam(0.1), every=2), [1.0, 3.0, 4.0, 8.0])
    _, plain = weighted(ps.optimizers.adam(0.1), [2.0, 6.0])
    assert equal(states[1].inner, plain[0])
    assert equal(states[3].inner, plain[1])


def test_updates_in_between_are_zero_even_where_the_inner_ones_are_nan():
    updates, _ = weighted(accumulate(scale(mx.array(float("nan"))), every=2), [1.0, 1.0])
    assert updates[0].item() == 0
    assert mx.isnan(updates[1]).item()


def test_schedules_count_updates_and_not_steps():
    transform = accumulate(transforms.scale_by_learning_rate(schedules.linear(1.0, 3.0, 2)), every=2)
    updates, states = weighted(transform, [1.0] * 6)
    assert numbers(updates) == [0, -1, 0, -2, 0, -3]
    assert states[-1].inner.count.item() == 3


def test_the_state_counts_to_every_and_begins_again():
    _, states = weighted(accumulate(scale(1.0), every=3), [1.0, 2.0, 3.0, 4.0], weights=[2.0, 1.0, 1.0, 5.0])
    assert [state.mini_step.item() for state in states] == [1, 2, 0, 1]
    assert {state.mini_step.dtype for state in states} == {mx.int32}
    assert [state.gradients["w"].item() for state in states] == [2, 4, 0, 20]
    assert [state.weight.item() for state in states] == [2, 3, 0, 5]


def test_every_step_when_every_is_one():
    updates, states = weighted(accumulate(ps.optimizers.adam(0.1), every=1), [1.0, 2.0, 6.0])
    plain, plain_states = weighted(ps.optimizers.adam(0.1), [1.0, 2.0, 6.0])
    assert numbers(updates) == numbers(plain)
    assert equal(states[-1].inner, plain_states[-1])


def test_bfloat16_gradients_are_summed_in_float32():
    updates, states = weighted(accumulate(scale(1.0), every=301), [256.0] + [1.0] * 300, dtype=mx.bfloat16)
    assert states[0].gradients["w"].dtype == mx.float32
    assert states[-2].gradients["w"].item() == 256 + 299  # in bfloat16 it would stay at 256
    assert updates[-1].item() == pytest.approx(556 / 301, rel=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_the_state_keeps_its_dtypes(dtype):
    transform = accumulate(ps.optimizers.adam(0.1), every=2)
    start = transform.init({"w": mx.zeros((), dtype)})
    _, states = weighted(transform, [1.0, 2.0, 3.0], weights=[1, 2, 3], dtype=dtype)
    assert all(tree.alike(start, state) for state in states)


def test_the_wrapped_transform_receives_params_total_weight_and_other_arguments():
    seen = {}

    def update(updates, state, params=None, *, weight, value):
        seen.update(weight=weight.item(), value=value, params=params)
        return updates, state

    params = {"w": mx.array(1.0)}
    transform = accumulate(ps.GradientTransform(lambda params: (), update), every=2)
    state = transform.init(params)
    for weight in (2.0, 3.0):
        _, state = transform.update({"w": mx.array(1.0)}, state, params, weight=weight, value=7, other=8)
    assert (seen["weight"], seen["value"]) == (5.0, 7)
    assert seen["params"] == params


def test_accumulation_works_inside_a_chain():
    transform = ps.chain(scale(2.0), accumulate(scale(1.0), every=2), scale(-1.0))
    updates, _ = weighted(transform, [1.0, 5.0], weights=[1.0, 3.0])
    assert numbers(updates) == [0, -8]


@pytest.mark.parametrize(
    ("transform", "every", "error", "message"),
    [
        (scale(1.0), 0, ValueError, "accumulate: every ... 1, got 0"),
        (scale(1.0), -2, ValueError, "accumulate: every ... 1, got -2"),
        (scale(1.0), 2.0, TypeError, "accumulate: every ... integer, got 2.0"),
        (scale(1.0), True, TypeError, "accumulate: every ... integer, got True"),
        (transforms.scale_by_adam, 2, TypeError, "transform ... GradientTransform, got <function scale_by"),
        (None, 2, TypeError, "accumulate: transform ... GradientTransform, got None"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(transform, every, error, message):
    with pytest.raises(error, match=parts(message)):
        accumulate(transform, every=every)


def test_a_partial_window_is_flushed_to_its_exact_mean():
    transform = accumulate(ps.optimizers.adam(0.1), every=5)
    updates, states = weighted(transform, [1.0, 5.0], weights=[1.0, 3.0])
    assert numbers(updates) == [0, 0]
    params = {"w": mx.array(0.0)}
    got, state = flush(transform, states[-1], params)
    want, plain = weighted(ps.optimizers.adam(0.1), [4.0])
    assert got["w"].item() == want[0].item()
    assert equal(state.inner, plain[0])
    assert (state.mini_step.item(), state.count.item(), state.weight.item()) == (0, 1, 0.0)
    again, same = flush(transform, state, params)
    assert again["w"].item() == 0
    assert equal(same, state)


def test_a_window_begins_whole_after_a_flush():
    transform = accumulate(scale(-1.0), every=2)
    params = {"w": mx.array(0.0)}
    state = flush(transform, weighted(transform, [7.0])[1][-1], params)[1]
    out = []
    for gradient in (1.0, 3.0):
        updates, state = transform.update({"w": mx.array(gradient)}, state, params)
        out.append(updates["w"].item())
    assert out == [0, -2]


def test_a_flush_reaches_through_a_chain():
    transform = ps.chain(scale(2.0), accumulate(scale(-1.0), every=4))
    _, states = weighted(transform, [1.0, 2.0])
    updates, state = flush(transform, states[-1], {"w": mx.array(0.0)})
    assert updates["w"].item() == -3
    assert state[1].mini_step.item() == 0


def test_every_may_follow_a_schedule_of_the_updates_made():
    transform = accumulate(scale(-1.0), every=lambda count: mx.where(count < 2, 1, 3))
    updates, states = weighted(transform, [1.0, 2.0, 3.0, 4.0, 8.0, 5.0])
    assert numbers(updates) == [-1, -2, 0, 0, -5, 0]
    assert [state.count.item() for state in states] == [1, 2, 2, 2, 3, 3]


def test_flush_refuses_an_optimizer_that_was_not_called():
    with pytest.raises(TypeError, match="flush: transform .* GradientTransform"):
        flush(ps.optimizers.adam, (), {})


def sums(k, gradients, dtype=mx.float32):
    """Return the updates of `apply_every(k)`, and the last state."""
    updates, states = weighted(apply_every(k), gradients, dtype=dtype)
    return numbers(updates), states[-1]


def test_the_sum_comes_out_every_k_calls():
    assert sums(3, [1, 2, 4, 8, 16, 32, 64])[0] == [0, 0, 7, 0, 0, 56, 0]
    assert sums(1, [1, 2])[0] == [1, 2]
    _, state = sums(3, [1, 2, 4, 8])
    assert (state.count.item(), state.grad_acc["w"].item()) == (1, 8)


def test_bfloat16_updates_are_summed_in_float32():
    out, state = sums(301, [256.0] + [1.0] * 300, mx.bfloat16)
    assert out[-1] == 556
    assert state.grad_acc["w"].dtype == mx.float32


def test_an_infinite_update_does_not_outlive_its_window():
    assert sums(2, [mx.inf, 1.0, 1.0, 1.0])[0] == [0, mx.inf, 0, 2]


def test_a_bad_period_of_sums_is_refused():
    with pytest.raises(ValueError, match="apply_every: k .* 1, got 0"):
        apply_every(0)
    with pytest.raises(TypeError, match="apply_every: k .* integer, got 2.0"):
        apply_every(2.0)
    assert tree.leaves(apply_every().init({"a": None}).grad_acc) == []
