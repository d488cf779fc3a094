"""The state of a run."""

import mlx.core as mx
import pytest

import purestep as ps
from tests.refusals import parts


def test_a_state_begins_at_step_zero_with_a_key_of_its_seed():
    transform = ps.optimizers.adam(1e-3)
    state = ps.TrainState.create({"w": mx.zeros(3)}, transform, seed=4)
    assert (state.step.item(), state.step.dtype) == (0, mx.int32)
    assert state.rng.tolist() == mx.random.key(4).tolist()
    assert state.model_state == {}
    assert ps.TrainState.create({"w": mx.zeros(3)}, transform, rng=mx.random.key(9)).rng.tolist() == [0, 9]


def test_replace_returns_another_state():
    state = ps.TrainState.create({"w": mx.zeros(3)}, ps.identity())
    later = state.replace(step=mx.array(5, mx.int32))
    assert (state.step.item(), later.step.item()) == (0, 5)
    assert later.params is state.params
    with pytest.raises(ValueError, match="nonsense"):
        state.replace(nonsense=1)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"a": [1.0]}, TypeError, "params.a.0 ... Python number 1.0; ... mx.array(1.0)"),
        ({"a": True}, TypeError, "params.a ... Python number True"),
        ({"a": "text"}, TypeError, "params.a ... mx.array ... got str"),
        ({"a": mx.array([1, 2])}, ValueError, "params ... floating, got mlx.core.int32 at a"),
        ({}, ValueError, "params ... one array, got none"),
        (None, ValueError, "params ... one array, got none"),
    ],
)
def test_params_that_cannot_be_trained_are_refused_by_path(params, error, message):
    with pytest.raises(error, match=parts(f"TrainState.create: {message}")):
        ps.TrainState.create(params, ps.identity())


def test_other_arguments_are_refused_by_name():
    params = {"w": mx.zeros(2)}
    with pytest.raises(
        TypeError, match="TrainState.create: transform .* GradientTransform, got <function adam"
    ):
        ps.TrainState.create(params, ps.optimizers.adam)
    with pytest.raises(TypeError, match="TrainState.create: seed .* integer, got 0.5"):
        ps.TrainState.create(params, ps.identity(), seed=0.5)
    with pytest.raises(ValueError, match="TrainState.create: a key .* uint32 array.*float32"):
        ps.TrainState.create(params, ps.identity(), rng=mx.zeros(2))
    with pytest.raises(TypeError, match=r"TrainState.create: model_state\.n .*Python number 3"):
        ps.TrainState.create(params, ps.identity(), model_state={"n": 3})
