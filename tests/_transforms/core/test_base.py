"""The contract: identity, stateless transforms, apply_updates, and extra arguments."""

from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import GradientTransform, chain, transforms, tree
from purestep._transforms.core.base import check_transform, taking_extra
from purestep.transforms import stateless
from tests.refusals import parts


class Layer(NamedTuple):
    weight: mx.array
    bias: mx.array | None


def test_identity_returns_the_same_updates_and_state():
    updates, state = {"w": mx.array(2.0)}, ps.identity().init({"w": mx.array(0.0)})
    assert state == ()
    assert ps.identity().update(updates, state) == (updates, ())


def test_a_stateless_transform_sees_updates_and_params():
    transform = stateless(lambda updates, params: {"w": updates["w"] - params["w"]})
    updates, state = transform.update({"w": mx.array(5.0)}, (), {"w": mx.array(3.0)})
    assert (updates["w"].item(), state) == (2.0, ())


def test_a_stateless_transform_called_without_params_sees_none():
    transform = stateless(lambda updates, params: params)
    assert transform.update({"w": mx.array(5.0)}, ()) == (None, ())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("update_dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_applied_updates_leave_each_parameter_its_dtype(dtype, update_dtype):
    params = ps.apply_updates({"w": mx.array([1.0, 2.0], dtype)}, {"w": mx.array([0.5, -0.5], update_dtype)})
    assert params["w"].dtype == dtype
    assert params["w"].tolist() == [1.5, 1.5]


def test_the_sum_is_rounded_once():
    # Slightly more than half a bfloat16 spacing above 1. An update rounded first would tie, and give 1.
    update = mx.array(2.0**-8 + 2.0**-20)
    assert update.astype(mx.bfloat16).item() == 2.0**-8
    params = ps.apply_updates({"w": mx.array(1.0, mx.bfloat16)}, {"w": update})
    assert params["w"].item() == 1 + 2.0**-7


def test_applied_updates_keep_every_container_and_none():
    params = {"layers": [Layer(mx.array(1.0), None)], "empty": (), "pair": (mx.array(2.0), None)}
    updates = {"layers": [Layer(mx.array(0.5), None)], "empty": (), "pair": (mx.array(1.0), None)}
    applied = ps.apply_updates(params, updates)
    assert isinstance(applied["layers"][0], Layer)
    assert (applied["layers"][0].weight.item(), applied["layers"][0].bias) == (1.5, None)
    assert (applied["empty"], applied["pair"][0].item(), applied["pair"][1]) == ((), 3.0, None)


def test_applied_updates_leave_the_old_parameters_as_they_were():
    params = {"w": mx.array([1.0, 2.0])}
    ps.apply_updates(params, {"w": mx.array([1.0, 1.0])})
    assert params["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("params", "updates", "message"),
    [
        (
            {"layers": [{"w": mx.zeros((2, 3))}]},
            {"layers": [{"w": mx.zeros((3, 2))}]},
            "apply_updates: layers.0.w ... (3, 2) in updates, (2, 3) in params",
        ),
        (
            {"w": mx.zeros((2, 3))},
            {"w": mx.zeros(3)},
            "apply_updates: w ... (3,) in updates, (2, 3) in params",
        ),
        ({"w": mx.zeros(2)}, {"w": mx.array(1.0)}, "apply_updates: w ... () in updates, (2,) in params"),
        ({"a": {"w": mx.zeros(2)}}, {"a": {"w": None}}, "a.w ... leaf ... None"),
        ({"a": {"w": None}}, {"a": {"w": mx.zeros(2)}}, "a.w ... None ... leaf"),
        ({"a": {"w": mx.zeros(2)}}, {"a": {"v": mx.zeros(2)}}, "a ... dict of (w) ... dict of (v)"),
        ([mx.zeros(2)], (mx.zeros(2),), "the tree ... list of (0) ... tuple of (0)"),
    ],
)
def test_updates_built_or_shaped_otherwise_are_refused_with_the_path(params, updates, message):
    with pytest.raises(ValueError, match=parts(message)):
        ps.apply_updates(params, updates)


def test_an_update_receives_only_the_extra_arguments_that_it_names():
    def update(updates, state, params=None, *, value):
        return value, state

    transform = ps.GradientTransform(lambda params: (), update)
    assert taking_extra(transform)({}, (), None, value=3, weight=4) == (3, ())


def test_an_update_with_any_keyword_receives_all():
    def update(updates, state, params=None, **extra):
        return extra, state

    transform = ps.GradientTransform(lambda params: (), update)
    assert taking_extra(transform)({}, (), None, value=3, weight=4) == ({"value": 3, "weight": 4}, ())


def test_an_update_that_names_no_extra_argument_receives_none():
    updates, _ = taking_extra(ps.identity())({"w": 1}, (), None, value=3)
    assert updates == {"w": 1}


def test_an_object_with_init_and_update_is_a_transform():
    check_transform("chain", "transforms[0]", ps.identity())


@pytest.mark.parametrize("value", [ps.identity, None, "adam", lambda updates, state: (updates, state)])
def test_an_object_without_them_is_refused(value):
    message = f"chain: transforms[0] ... GradientTransform, got {value!r}"
    with pytest.raises(TypeError, match=parts(message)):
        check_transform("chain", "transforms[0]", value)


def writing():
    """Return a user's transform that writes into all of its arguments."""

    def update(updates, state, params=None, *, gradients=None):
        params["w"][...] = 9.0
        state["sum"] += updates["w"]
        updates["w"] *= 4.0
        return updates, state

    return GradientTransform(lambda params: {"sum": mx.zeros_like(params["w"])}, update)


def test_what_a_member_writes_into_its_arguments_reaches_no_other_member():
    gradients, params = {"w": mx.array(1.0)}, {"w": mx.array(2.0)}
    transform = chain(writing(), transforms.clip_by_global_norm(3.0), transforms.add_decayed_weights(1.0))
    updates, state = transform.update(
        gradients, transform.init(params), params, gradients=gradients, grad_norm=mx.array(1.0)
    )
    assert (updates["w"].item(), state[0]["sum"].item()) == (3.0 + 2.0, 1.0)
    assert (gradients["w"].item(), params["w"].item()) == (1.0, 2.0)


def test_a_skipped_update_leaves_the_state_of_a_member_that_writes_into_it():
    params = {"w": mx.array(2.0)}
    transform = transforms.skip_nonfinite(writing())
    _, state = transform.update({"w": mx.array(1.0)}, transform.init(params), params)
    _, state = transform.update({"w": mx.array(mx.nan)}, state, params)
    assert state.inner["sum"].item() == 1.0


def test_a_first_member_can_tell_that_its_updates_are_the_gradients():
    seen = []

    def update(updates, state, params=None, *, gradients):
        seen.append(updates is gradients)
        return tree.map(lambda u: 2 * u, updates), state

    noting = GradientTransform(lambda params: (), update)
    gradients = {"w": mx.array(1.0)}
    transform = chain(noting, noting)
    transform.update(gradients, transform.init(gradients), gradients=gradients)
    assert seen == [True, False]
