"""conditionally_mask and conditionally_transform: the steps at which the wrapped transform applies."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms
from purestep.transforms import conditionally_mask, conditionally_transform
from tests._transforms.walking import draws, steps_of
from tests.refusals import parts
from tests.trees import like, same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.bfloat16), None]}


def all_steps(transform, steps, **extra):
    """Return (updates, state) after each step."""
    return steps_of(transform, draws(PARAMS, steps), PARAMS, **extra)


@pytest.mark.parametrize("wrap", [conditionally_mask, conditionally_transform])
def test_the_inner_transform_sees_only_its_own_steps(wrap):
    seen = all_steps(wrap(optimizers.adam(0.1), lambda step: step % 3 == 1), 6)
    inner = optimizers.adam(0.1)
    state = inner.init(PARAMS)
    for seed, (updates, kept) in enumerate(seen):
        gradients = like(PARAMS, seed)
        if seed % 3 == 1:
            want, state = inner.update(gradients, state, PARAMS)
        elif wrap is conditionally_mask:
            want = ps.tree.map(lambda g: mx.zeros(g.shape), gradients)
        else:
            want = ps.tree.cast(gradients, mx.float32)
        assert same_bits(updates, want)
        assert same_bits(kept.inner_state, state)
        assert kept.step.item() == seed + 1


@pytest.mark.parametrize("wrap", [conditionally_mask, conditionally_transform])
def test_the_condition_sees_extra_arguments_when_asked(wrap):
    def small(step, value, **others):
        return value < 1

    for value, ran in ((0.5, 1), (2.0, 0)):
        ((_, state),) = all_steps(wrap(optimizers.adam(0.1), small, True), 1, value=mx.array(value), weight=1)
        assert state.inner_state[0].count.item() == ran


def test_the_condition_may_return_a_python_boolean():
    assert same_bits(
        all_steps(conditionally_mask(transforms.scale(2.0), lambda step: True), 1)[0][0],
        all_steps(transforms.scale(2.0), 1)[0][0],
    )


def test_the_fields_are_those_of_optax():
    assert conditionally_mask(ps.identity(), bool).init(PARAMS)._fields == ("step", "inner_state")
    assert conditionally_transform(ps.identity(), bool).init(PARAMS)._fields == ("inner_state", "step")


@pytest.mark.parametrize("wrap", [conditionally_mask, conditionally_transform])
def test_bad_arguments_are_refused(wrap):
    with pytest.raises(TypeError, match=f"{wrap.__name__}: inner .* GradientTransform"):
        wrap(transforms.scale, bool)
    with pytest.raises(TypeError, match="should_transform_fn .* callable, got 3"):
        wrap(ps.identity(), 3)
    for value in (mx.array(1), mx.array([True]), None, 1):
        message = "should_transform_fn ... 0-d boolean array"
        with pytest.raises(TypeError, match=parts(message)):
            all_steps(wrap(ps.identity(), lambda step, value=value: value), 1)
