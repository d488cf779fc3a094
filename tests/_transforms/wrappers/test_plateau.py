"""reduce_on_plateau: patience, cooldown, tolerances and the lower bound of the scale."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, tree
from purestep.transforms import reduce_on_plateau
from tests.refusals import parts

PARAMS = {"w": mx.ones(2), "b": mx.ones((), mx.bfloat16), "none": None}


def scales(transform, values):
    state, seen = transform.init(PARAMS), []
    for value in values:
        updates, state = transform.update(PARAMS, state, value=mx.array(value))
        assert updates["w"][0].item() == state.scale.item()
        assert updates["b"].dtype == mx.bfloat16
        assert tree.alike(state, transform.init(PARAMS))
        seen.append(state.scale.item())
    return seen


@pytest.mark.parametrize(
    ("options", "values", "want"),
    [
        ({"patience": 2}, [4, 3, 3, 3, 3, 3], [1, 1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 2}, [4, 4, 3, 3, 2, 2], [1, 1, 1, 1, 1, 1]),
        ({"patience": 1, "cooldown": 2}, [3, 3, 3, 3, 3], [1, 0.5, 0.5, 0.5, 0.25]),
        ({"patience": 1, "min_scale": 0.25}, [1] * 5, [1, 0.5, 0.25, 0.25, 0.25]),
        ({"patience": 1, "accumulation_size": 2}, [1, 3, 2, 2, 2, 0], [1, 1, 1, 0.5, 0.5, 0.5]),
        ({"patience": 1, "rtol": 0.0, "atol": 0.5}, [3, 2.75, 2.25], [1, 0.5, 0.5]),
        ({"patience": 1}, [3, mx.nan, 3], [1, 0.5, 0.25]),
    ],
)
def test_the_scale_by_hand(options, values, want):
    assert scales(reduce_on_plateau(0.5, **options), values) == want


def test_train_step_passes_it_the_loss():
    def loss_fn(params, batch, rng):
        return mx.square(params["w"] * 0 + batch["x"]).mean()

    transform = ps.chain(optimizers.sgd(0.1), reduce_on_plateau(0.5, patience=1))
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform)
    step = ps.train_step(loss_fn, transform)
    for _ in range(3):
        state, _ = step(state, {"x": mx.array([1.0])})
    assert state.opt_state[1].scale.item() == 0.25
    assert state.opt_state[1].best_value.item() == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor ... 1, got 1.0"),
        ({"factor": 0.0}, "factor ... 0, got 0.0"),
        ({"patience": 0}, "patience ... 1, got 0"),
        ({"rtol": -1.0}, "rtol ... 0, got -1.0"),
        ({"rtol": 2.0}, "rtol ... 1, got 2.0"),
        ({"rtol": 0.0}, "rtol or atol ... 0, got 0 for both"),
        ({"cooldown": -1}, "cooldown ... 0, got -1"),
        ({"accumulation_size": 0}, "accumulation_size ... 1, got 0"),
        ({"min_scale": mx.nan}, "min_scale ... finite, got nan"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=parts("reduce_on_plateau: " + message)):
        reduce_on_plateau(**options)


def test_a_missing_value_is_refused():
    transform = reduce_on_plateau()
    with pytest.raises(ValueError, match="reduce_on_plateau: value .*needed"):
        transform.update(PARAMS, transform.init(PARAMS))
