"""ema averages updates; averaged keeps an average of the parameters."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import eval_params, optimizers, transforms, tree
from purestep.transforms import averaged, ema, skip_nonfinite
from tests._transforms.walking import trained
from tests.refusals import parts
from tests.trees import same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.bfloat16), None], "empty": mx.zeros((0, 2))}


def walk(transform, steps):
    """Return the parameters after each step, and the last state."""
    seen = trained(transform, PARAMS, steps)
    return [params for params, _ in seen], seen[-1][1]


def test_the_mean_of_updates_by_hand():
    for debias, want in ((True, [1.0, (0.5 * 0.5 * 1 + 0.5 * 4) / 0.75]), (False, [0.5, 2.25])):
        transform = ema(0.5, debias=debias)
        state = transform.init({"w": mx.array(0.0)})
        for gradient, expected in zip((1.0, 4.0), want, strict=True):
            updates, state = transform.update({"w": mx.array(gradient)}, state)
            assert updates["w"].item() == pytest.approx(expected)
        assert state.ema["w"].item() == 2.25  # the mean in the state is not debiased


def test_a_mean_of_bfloat16_updates_is_float32_unless_asked():
    params = {"w": mx.zeros(2, mx.bfloat16)}
    assert ema(0.9).init(params).ema["w"].dtype == mx.float32
    transform = ema(0.9, accumulator_dtype=mx.bfloat16)
    _, state = transform.update(params, transform.init(params))
    assert state.ema["w"].dtype == mx.bfloat16


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_the_exponential_average_is_of_the_parameters_after_each_update(decay):
    seen, state = walk(averaged(optimizers.sgd(0.1), decay), 4)
    want = np.ones((2, 3))
    for params in seen:
        want = decay * want + (1 - decay) * np.array(params["w"])
    np.testing.assert_allclose(state.average["w"], want, rtol=1e-6)
    assert state.count.item() == 4


@pytest.mark.parametrize("start", [0, 2])
def test_the_polyak_average_is_the_plain_mean_from_start_on(start):
    seen, state = walk(averaged(optimizers.sgd(0.1), None, start=start), 5)
    want = np.mean([np.array(params["w"]) for params in seen[start:]], axis=0)
    np.testing.assert_allclose(state.average["w"], want, rtol=1e-6)


def test_until_start_the_average_is_the_parameters():
    seen, state = walk(averaged(optimizers.sgd(0.1), 0.9, start=3), 3)
    np.testing.assert_allclose(state.average["w"], seen[-1]["w"], rtol=1e-6)
    later, state = walk(averaged(optimizers.sgd(0.1), 0.9, start=3), 4)
    want = 0.9 * np.array(later[2]["w"]) + 0.1 * np.array(later[3]["w"])
    np.testing.assert_allclose(state.average["w"], want, rtol=1e-6)


def test_a_decay_may_follow_a_schedule():
    decay = lambda count: count / (count + 1)  # noqa: E731
    seen, state = walk(averaged(optimizers.sgd(0.1), decay), 4)
    want = np.mean([np.array(params["w"]) for params in seen], axis=0)
    np.testing.assert_allclose(state.average["w"], want, rtol=1e-6)


def test_training_is_not_touched():
    for decay in (0.9, None):
        seen, state = walk(averaged(optimizers.adam(0.1), decay), 3)
        alone, alone_state = walk(optimizers.adam(0.1), 3)
        assert same_bits(seen, alone)
        assert same_bits(state.inner, alone_state)


def test_a_bfloat16_parameter_is_averaged_in_float32_as_it_was_rounded():
    seen, state = walk(averaged(optimizers.sgd(1e-3), None), 3)
    assert state.average["b"][0].dtype == mx.float32
    want = np.mean([np.array(params["b"][0].astype(mx.float32)) for params in seen], axis=0)
    np.testing.assert_allclose(state.average["b"][0], want, rtol=1e-6)
    evaluated = eval_params(state, seen[-1])
    assert tree.alike(evaluated, PARAMS)


def test_tiny_changes_reach_a_float32_average_of_bfloat16_parameters():
    params = {"w": mx.ones(1, mx.bfloat16)}
    transform = averaged(ps.identity(), 0.999)
    state = transform.init({"w": mx.zeros(1, mx.bfloat16)})
    for _ in range(100):
        _, state = transform.update({"w": mx.zeros(1, mx.bfloat16)}, state, params)
    assert state.average["w"].item() == pytest.approx(1 - 0.999**100, rel=1e-4)


def test_a_skipped_step_does_not_enter_the_average():
    transform = skip_nonfinite(averaged(optimizers.sgd(0.1), None))
    params = {"w": mx.array(1.0)}
    state = transform.init(params)
    for gradient in (1.0, mx.nan, 1.0):
        updates, state = transform.update({"w": mx.array(gradient)}, state, params)
        params = ps.apply_updates(params, updates)
    assert eval_params(state, params)["w"].item() == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ema(1.0), ValueError, "ema: decay ... 1, got 1.0"),
        (lambda: ema(-0.1), ValueError, "ema: decay ... 0, got -0.1"),
        (lambda: averaged(optimizers.sgd), TypeError, "averaged: inner ... GradientTransform"),
        (lambda: averaged(ps.identity(), 1.1), ValueError, "averaged: decay ... 1, got 1.1"),
        (lambda: averaged(ps.identity(), mx.nan), ValueError, "averaged: decay ... finite, got nan"),
        (lambda: averaged(ps.identity(), start=-1), ValueError, "averaged: start ... 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()


def test_an_average_needs_the_parameters():
    transform = averaged(transforms.scale(1.0))
    with pytest.raises(ValueError, match="averaged: params .*needed"):
        transform.update(PARAMS, transform.init(PARAMS))
