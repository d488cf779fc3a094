"""dynamic_loss_scale: the scale grows and shrinks; the inner transform sees unscaled gradients."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep.transforms import dynamic_loss_scale, loss_scale
from tests._transforms.walking import is_zero, noting, scalars, steps_of
from tests.refusals import parts
from tests.trees import like, same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.float16), None]}


def states(transform, gradients):
    """Return the state after each gradient of a single number."""
    return [state for _, state in steps_of(transform, scalars(gradients), {"w": mx.array(0.0)})]


def test_the_scale_grows_after_an_interval_and_backs_off_at_once():
    transform = dynamic_loss_scale(ps.identity(), 8.0, growth_interval=2)
    seen = states(transform, [1, 1, 1, mx.inf, 1, mx.nan, 1, 1, 1, 1])
    assert [state.loss_scale.item() for state in seen] == [8, 16, 16, 8, 8, 4, 4, 8, 8, 16]
    assert [state.good_steps.item() for state in seen] == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert seen[-1].skipped.item() == 2


def test_the_scale_stays_within_its_bounds():
    transform = dynamic_loss_scale(ps.identity(), 4.0, 1, min_scale=2.0, max_scale=8.0)
    assert [s.loss_scale.item() for s in states(transform, [1, 1, 1])] == [8, 8, 8]
    assert [s.loss_scale.item() for s in states(transform, [mx.inf] * 3)] == [2, 2, 2]


def test_the_defaults():
    state = dynamic_loss_scale(ps.identity()).init(PARAMS)
    assert state.loss_scale.item() == 2**15
    assert state.loss_scale.dtype == mx.float32
    seen = states(dynamic_loss_scale(ps.identity()), [1.0] * 3 + [mx.inf])
    assert seen[-1].loss_scale.item() == 2**14


def test_the_inner_transform_sees_unscaled_gradients_and_nothing_of_skipped_steps():
    transform, inner = dynamic_loss_scale(optimizers.adamw(0.1)), optimizers.adamw(0.1)
    state, inner_state = transform.init(PARAMS), inner.init(PARAMS)
    for seed in range(3):
        gradients = tree.map(lambda g: 0.25 * g, tree.cast(like(PARAMS, seed), mx.float32))
        scale = loss_scale(state)
        want, inner_state = inner.update(gradients, inner_state, PARAMS)
        got, state = transform.update(tree.map(lambda g, s=scale: s * g, gradients), state, PARAMS)
        assert same_bits(got, want)
        assert same_bits(state.inner, inner_state)
        updates, state = transform.update(tree.map(lambda g: g * mx.inf, gradients), state, PARAMS)
        assert is_zero(updates)
        assert same_bits(state.inner, inner_state)


def test_gradients_too_small_for_float16_are_not_lost():
    params = {"w": mx.zeros(1, mx.float16)}
    transform = dynamic_loss_scale(ps.identity(), 2.0**15)
    updates, _ = transform.update({"w": mx.array([2.0**-10], mx.float16)}, transform.init(params), params)
    assert updates["w"].dtype == mx.float32
    assert updates["w"].item() == 2.0**-25  # 0 in float16


def test_norms_and_gradients_handed_on_are_unscaled():
    inner, seen = noting()
    transform = dynamic_loss_scale(inner, 8.0)
    gradients = {"w": mx.array(16.0)}
    extra = {"gradients": gradients, "grad_norm": mx.array(16.0), "value": 5}
    transform.update(gradients, transform.init(gradients), **extra)
    assert seen["gradients"] is seen["updates"]
    assert (seen["grad_norm"].item(), seen["updates"]["w"].item(), seen["value"]) == (2.0, 2.0, 5)
    transform.update({"w": mx.array(1.0)}, transform.init(gradients), **extra)
    assert seen["gradients"]["w"].item() == 2.0
    assert seen["updates"]["w"].item() == 0.125


def test_clipping_within_sees_the_true_norm():
    transform = dynamic_loss_scale(transforms.clip_by_global_norm(1.0), 8.0)
    gradients = {"w": mx.array(4.0)}
    extra = {"gradients": gradients, "grad_norm": tree.norm(gradients)}
    updates, _ = transform.update(gradients, transform.init(gradients), **extra)
    assert updates["w"].item() == 0.5


def test_the_scale_is_found_at_any_depth():
    transform = ps.chain(ps.identity(), dynamic_loss_scale(optimizers.adam(0.1), 4.0))
    assert loss_scale(transform.init(PARAMS)).item() == 4.0
    for state, count in (((), 0), ((transform.init(PARAMS), transform.init(PARAMS)), 2)):
        with pytest.raises(ValueError, match=f"loss_scale: the state .* one loss_scale.* got {count}"):
            loss_scale(state)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init_scale": 0.0}, ValueError, "init_scale ... 1.0, got 0.0"),
        ({"init_scale": mx.inf}, ValueError, "init_scale ... finite, got inf"),
        ({"growth_interval": 0}, ValueError, "growth_interval ... 1, got 0"),
        ({"growth_factor": 0.5}, ValueError, "growth_factor ... 1, got 0.5"),
        ({"backoff_factor": 1.0}, ValueError, "backoff_factor ... 1, got 1.0"),
        ({"min_scale": 0.0}, ValueError, "min_scale ... 0, got 0.0"),
        ({"max_scale": 0.5}, ValueError, "max_scale ... 1.0, got 0.5"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=parts("dynamic_loss_scale: " + message)):
        dynamic_loss_scale(ps.identity(), **options)
    with pytest.raises(TypeError, match="dynamic_loss_scale: inner .* GradientTransform"):
        dynamic_loss_scale(ps.identity)
