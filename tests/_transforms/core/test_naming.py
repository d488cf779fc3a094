"""named_chain: a chain whose states have names."""

import re

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms
from purestep.transforms import named_chain
from tests.trees import like, same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": None}


def test_it_does_what_chain_does():
    members = (transforms.clip_by_global_norm(0.5), optimizers.adam(0.1))
    named, plain = named_chain(("clip", members[0]), ("adam", members[1])), ps.chain(*members)
    states = named.init(PARAMS), plain.init(PARAMS)
    for seed in range(3):
        got, named_state = named.update(like(PARAMS, seed), states[0], PARAMS)
        want, plain_state = plain.update(like(PARAMS, seed), states[1], PARAMS)
        states = named_state, plain_state
        assert same_bits(got, want)
    assert list(states[0]) == ["clip", "adam"]
    assert same_bits(tuple(states[0].values()), states[1])


def test_extra_arguments_reach_the_members_that_name_them():
    def update(updates, state, params=None, *, value):
        return {"w": updates["w"] * value}, state

    transform = named_chain(("a", transforms.scale(2.0)), ("b", ps.GradientTransform(lambda p: (), update)))
    updates, _ = transform.update({"w": mx.array(1.0)}, transform.init(PARAMS), value=3, other=4)
    assert updates["w"].item() == 6.0


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((("a", transforms.scale),), TypeError, "named_chain: a must be a GradientTransform"),
        ((transforms.scale(1.0),), TypeError, "named_chain: args[0] must be a pair (name, transform)"),
        (((0, transforms.scale(1.0)),), TypeError, "args[0] must be a pair"),
        ((("a", ps.identity()), ("a", ps.identity())), ValueError, "names must differ, got 'a' twice"),
    ],
)
def test_bad_arguments_are_refused(args, error, message):
    with pytest.raises(error, match=re.escape(message)):
        named_chain(*args)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ({}, "state.a is in transform.init(params), not in the state"),
        ({"b": ()}, "state.b is in the state, not in transform.init(params)"),
        (((),), "state is a tuple in the state, a dict in transform.init(params)"),
    ],
)
def test_another_state_is_refused(state, shown):
    with pytest.raises(ValueError, match=re.escape(f"named_chain: {shown}")):
        named_chain(("a", ps.identity())).update(PARAMS, state)
