"""Arguments that are recognized by how they are built; every other one is still refused."""

from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import tree
from purestep._steps.core.known import StateChecks, _route
from purestep._transforms.core.fitting import StateCheck

ADAM = ps.optimizers.adam(0.1)
PARAMS = {"a": mx.ones((2, 3)), "b": [mx.zeros(3), None, {}]}
BATCH = {"x": mx.ones((4, 2))}


def loss_fn(params, batch, rng):
    return (batch["x"] @ params["a"] + params["b"][0]).mean()


class Pair(NamedTuple):
    first: Any
    second: Any


def test_a_step_refuses_after_a_good_call_what_it_refuses_at_first():
    state = ps.TrainState.create(PARAMS, ADAM)
    step: Any = ps.train_step(loss_fn, ADAM, microbatches=2)
    good, _ = step(state, BATCH)
    other = ps.TrainState.create(PARAMS, ps.optimizers.sgd(0.1))
    narrow = good._replace(opt_state=tree.cast(good.opt_state, mx.float16))
    for bad, batch, message in [
        (tuple(good), BATCH, "state must be a TrainState"),
        (other, BATCH, "state.opt_state"),
        (narrow, BATCH, "state.opt_state.0.mu.a has dtype float16"),
        (good._replace(step=1), BATCH, "state.step is the Python number 1"),
        (
            good,
            {"x": mx.ones((3, 2))},
            "batch.x must be divisible by microbatches=2, got 3",
        ),
        (good, {"x": mx.ones((0, 2))}, "batch.x is empty"),
        (good, {}, "batch must hold at least one array"),
        (good, {"x": 1.0}, "batch.x is the Python number 1.0"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            step(bad, batch)
    assert step(good, BATCH)[0].step.item() == 2


def test_a_state_whose_structure_changes_in_a_later_step_is_refused():
    calls = []

    def stateful(params, model_state, batch, rng):
        calls.append(0)
        return loss_fn(params, batch, rng), {}, {"n": mx.zeros(len(calls))}

    step = ps.train_step(stateful, ADAM, stateful=True)
    state = ps.TrainState.create(PARAMS, ADAM, model_state={"n": mx.zeros(1)})
    state, _ = step(state, BATCH)
    with pytest.raises(ValueError, match=r"model_state.n has shape \(2,\) in the new state"):
        step(state, BATCH)

    def update(updates, state, params=None):
        return updates, (*state, mx.zeros(1))

    growing = ps.GradientTransform(lambda params: (mx.zeros(1),), update)
    with pytest.raises(ValueError, match="a step must keep the structure of the state: opt_state.1"):
        ps.train_step(loss_fn, growing)(ps.TrainState.create(PARAMS, growing), BATCH)


def test_the_learning_rate_is_the_first_field_of_that_name():
    state = ps.chain(ADAM, ps.transforms.masked(ps.optimizers.sgd(0.2), True)).init(PARAMS)
    named = ps.transforms.named_chain(("later", ADAM)).init(PARAMS)
    for opt_state in (state, named, {"x": [Pair(mx.zeros(1), mx.zeros(1))]}, (), mx.zeros(1)):
        found = tree.fields(opt_state, "learning_rate")
        check = StateChecks("test", StateCheck("test", lambda params: ()))
        got = check.learning_rate(object(), opt_state)
        assert got is (found[0][1] if found else None)
    assert _route({"a": Pair(Pair(1, 2), 3)}, "second") == ("a", 0, 1)  # in the order of the fields
