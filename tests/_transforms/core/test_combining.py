"""chain and named_chain: order, states, extra arguments, and refusals."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms
from purestep.transforms import named_chain
from tests.refusals import parts
from tests.trees import like, same_bits

PARAMS = {"w": mx.array(1.0)}
TREE = {"w": mx.ones((2, 3)), "b": None}


def recorder(seen, name=None):
    """Return a transform that appends its arguments to `seen`; it names one extra argument or accepts all."""

    def update_value(updates, state, params=None, *, value=None):
        seen.append({"updates": updates["w"].item(), "params": params, "value": value})
        return updates, state

    def update_all(updates, state, params=None, **extra):
        seen.append({"updates": updates["w"].item(), "params": params, **extra})
        return updates, state

    return ps.GradientTransform(lambda params: (), update_value if name == "value" else update_all)


def test_the_first_member_sees_the_gradients_and_each_next_one_the_updates_before_it():
    seen = []
    transform = ps.chain(recorder(seen), transforms.scale(2.0), recorder(seen), transforms.scale(-3.0))
    updates, _ = transform.update({"w": mx.array(5.0)}, transform.init(PARAMS), PARAMS)
    assert [note["updates"] for note in seen] == [5.0, 10.0]
    assert updates["w"].item() == -30.0


def test_every_member_sees_the_parameters():
    seen = []
    transform = ps.chain(recorder(seen), recorder(seen, "value"))
    transform.update({"w": mx.array(5.0)}, transform.init(PARAMS), PARAMS)
    assert [note["params"] == PARAMS for note in seen] == [True, True]


def test_the_state_is_the_tuple_of_the_members_states():
    transform = ps.chain(transforms.scale_by_adam(), transforms.scale(1.0), transforms.trace(0.5))
    state = transform.init(PARAMS)
    assert type(state) is tuple
    _, state = transform.update({"w": mx.array(2.0)}, state, PARAMS)
    assert type(state) is tuple
    assert [type(member).__name__ for member in state] == ["ScaleByAdamState", "tuple", "TraceState"]
    assert (state[0].count.item(), round(state[2].trace["w"].item(), 5)) == (1, 1.0)


def test_an_empty_chain_is_the_identity():
    updates = {"w": mx.array(5.0)}
    assert ps.chain().init(PARAMS) == ()
    assert ps.chain().update(updates, ()) == (updates, ())


def test_extra_arguments_reach_the_members_that_name_them_at_any_depth():
    seen = []
    transform = ps.chain(
        transforms.scale(1.0),
        ps.chain(transforms.trace(0.5), ps.chain(recorder(seen, "value"))),
        recorder(seen),
    )
    transform.update({"w": mx.array(5.0)}, transform.init(PARAMS), PARAMS, value=3, weight=4)
    assert [(note["value"], note.get("weight")) for note in seen] == [(3, None), (3, 4)]


def test_parameters_may_be_left_out_where_no_member_needs_them():
    transform = ps.chain(transforms.scale(2.0), transforms.trace(0.5))
    updates, _ = transform.update({"w": mx.array(5.0)}, transform.init(PARAMS))
    assert updates["w"].item() == 10.0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((), "chain: state.0 ... transform.init(params), not ... state; state.1"),
        (((), (), ()), "chain: state.2 ... state, not ... transform.init(params)"),
        (None, "chain: state ... None ... state, a tuple ... transform.init(params)"),
    ],
)
def test_the_state_of_more_or_fewer_members_is_refused(state, message):
    with pytest.raises(ValueError, match=parts(message)):
        ps.chain(transforms.scale(2.0), transforms.scale(1.0)).update({"w": mx.array(5.0)}, state)


@pytest.mark.parametrize("value", [transforms.scale_by_adam, None, 0.1])
def test_a_member_that_is_no_transform_is_refused_with_its_place(value):
    message = f"chain: transforms[1] ... GradientTransform, got {value!r}"
    with pytest.raises(TypeError, match=parts(message)):
        ps.chain(transforms.scale(1.0), value)


def test_integer_parameters_and_gradients_of_other_shapes_are_refused_by_path():
    transform = ps.optimizers.adam(0.1)
    with pytest.raises(ValueError, match=r"chain: params .* floating, got mlx.core.int32 at layers.0"):
        transform.init({"layers": [mx.array([1, 2])]})
    params = {"layers": [mx.zeros(2)]}
    state = transform.init(params)
    with pytest.raises(ValueError, match=r"chain: layers.0 .*\(1,\) in updates, \(2,\) in params"):
        transform.update({"layers": [mx.zeros(1)]}, state, params)
    with pytest.raises(ValueError, match=r"chain: layers .*list in updates, .*tuple in params"):
        transform.update({"layers": [mx.zeros(2)]}, state, {"layers": (mx.zeros(2),)})


def test_a_named_chain_does_what_chain_does():
    members = (transforms.clip_by_global_norm(0.5), optimizers.adam(0.1))
    named, plain = named_chain(("clip", members[0]), ("adam", members[1])), ps.chain(*members)
    states = named.init(TREE), plain.init(TREE)
    for seed in range(3):
        got, named_state = named.update(like(TREE, seed), states[0], TREE)
        want, plain_state = plain.update(like(TREE, seed), states[1], TREE)
        states = named_state, plain_state
        assert same_bits(got, want)
    assert list(states[0]) == ["clip", "adam"]
    assert same_bits(tuple(states[0].values()), states[1])


def test_extra_arguments_reach_the_named_members_that_name_them():
    def update(updates, state, params=None, *, value):
        return {"w": updates["w"] * value}, state

    transform = named_chain(("a", transforms.scale(2.0)), ("b", ps.GradientTransform(lambda p: (), update)))
    updates, _ = transform.update({"w": mx.array(1.0)}, transform.init(TREE), value=3, other=4)
    assert updates["w"].item() == 6.0


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((("a", transforms.scale),), TypeError, "named_chain: a ... GradientTransform"),
        ((transforms.scale(1.0),), TypeError, "named_chain: args[0] ... pair (name, transform)"),
        (((0, transforms.scale(1.0)),), TypeError, "named_chain: args[0] ... pair"),
        ((("a", ps.identity()), ("a", ps.identity())), ValueError, "named_chain: names ... 'a' twice"),
    ],
)
def test_bad_pairs_are_refused(args, error, message):
    with pytest.raises(error, match=parts(message)):
        named_chain(*args)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ({}, "state.a ... transform.init(params), not ... state"),
        ({"b": ()}, "state.b ... state, not ... transform.init(params)"),
        (((),), "state ... tuple ... state, a dict ... transform.init(params)"),
    ],
)
def test_the_state_of_other_names_is_refused(state, shown):
    with pytest.raises(ValueError, match=parts(f"named_chain: {shown}")):
        named_chain(("a", ps.identity())).update(TREE, state)
