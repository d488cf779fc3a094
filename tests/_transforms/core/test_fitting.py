"""States and gradients that do not fit are refused with their path, before anything is computed."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep._transforms.core.base import checked, taking_extra
from purestep._transforms.core.fitting import StateCheck
from purestep.testing.samples import array
from tests.catalogue import CATALOGUE
from tests.refusals import parts

PARAMS = {"w": array(1, (2, 3)), "b": array(2, (3,))}


def built(state):
    return str(tree.spec(tree.cast(state, mx.float32)))


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_state_of_any_other_transform_is_refused(name):
    transform = CATALOGUE[name]()
    foreign = {built(state): state for state in (make().init(PARAMS) for make in CATALOGUE.values())}
    assert len(foreign) > 40
    for spec, state in foreign.items():
        if spec != built(transform.init(PARAMS)):
            for params in (PARAMS, None):
                with pytest.raises(ValueError, match=r": state"):
                    transform.update(PARAMS, state, params, value=mx.array(1.0))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "chain: state ... None ... state, a tuple ... transform.init(params)"),
        ({}, "chain: state ... dict ... state, a tuple ... transform.init(params)"),
        (optimizers.sgd(0.1).init(PARAMS), "chain: state.0 ... tuple ... state, a ScaleByAdamState"),
        (
            optimizers.adam(0.1).init({"w": mx.zeros((3, 2)), "b": mx.zeros(3)}),
            "chain: state.0.mu.w ... (3, 2) ... state, (2, 3) ... transform.init(params); "
            "state.0.nu.w ... (3, 2) ... state, (2, 3) ... transform.init(params)",
        ),
        (
            optimizers.adam(0.1).init({"w": mx.zeros((2, 3))}),
            "chain: state.0.mu.b ... transform.init(params), not ... state; "
            "state.0.nu.b ... transform.init(params), not ... state",
        ),
    ],
)
def test_the_paths_of_what_differs_are_named(state, message):
    with pytest.raises(ValueError, match=parts(message)):
        optimizers.adam(0.1).update(PARAMS, state, PARAMS)


def test_a_leaf_that_is_no_array_is_refused():
    transform = transforms.scale_by_adam()
    state = transform.init(PARAMS)._replace(count=3)
    with pytest.raises(ValueError, match=r"scale_by_adam: state.count .* int .*state.* array of int32"):
        transform.update(PARAMS, state)


def test_no_more_than_three_differences_are_named():
    state = transforms.scale_by_adam().init({"a": PARAMS, "b": mx.zeros(1)})
    with pytest.raises(ValueError, match="scale_by_adam: .*; and 1 more$"):
        transforms.scale_by_adam().update({"a": PARAMS["w"], "b": mx.zeros(2)}, state)


def test_wrappers_are_named_and_compare_once():
    calls = []

    def init(params):
        calls.append(params)
        return ()

    inner = ps.GradientTransform(init, lambda updates, state, params=None: (updates, state))
    for wrap in (
        ps.chain,
        transforms.flatten,
        transforms.skip_nonfinite,
        lambda t: transforms.masked(t, True),
        lambda t: transforms.partition({"a": t}, "a"),
    ):
        transform = wrap(inner)
        state = transform.init(PARAMS)
        calls.clear()
        for _ in range(3):
            transform.update(PARAMS, state, PARAMS)
        assert len(calls) == 1
        with pytest.raises(ValueError, match="state"):
            transform.update(PARAMS, (1, 2, 3, 4, 5), PARAMS)


def test_parameters_of_another_structure_are_compared_anew():
    transform = transforms.trace(0.9)
    for params in (PARAMS, {"v": mx.ones(2)}, PARAMS):
        updates, _ = transform.update(params, transform.init(params), params)
        assert tree.alike(updates, params)


def test_members_of_a_wrapper_are_not_compared_again():
    transform = checked("t", lambda params: (), lambda updates, state, params=None: (updates, state))
    assert taking_extra(transform)(PARAMS, 3, None, weight=1)[1] == 3
    with pytest.raises(ValueError, match="t: state .* int .*state, a tuple"):
        transform.update(PARAMS, 3)


def test_a_strict_check_compares_dtypes_and_shows_the_path():
    check = StateCheck("train_step", transforms.trace(0.9).init, "state.opt_state")
    check(transforms.trace(0.9).init(PARAMS), PARAMS)
    half = tree.cast(transforms.trace(0.9).init(PARAMS), mx.float16)
    message = r"train_step: state.opt_state.trace.w .*dtype float16 .*state, float32 "
    with pytest.raises(ValueError, match=message):
        check(half, PARAMS)
    with pytest.raises(ValueError, match=r"here: state.trace.w .*dtype"):
        StateCheck("here", transforms.trace(0.9).init)(half, PARAMS)
    transforms.trace(0.9).update(PARAMS, half)  # an update accepts any floating-point dtype


def test_gradients_of_another_tree_or_shape_are_refused_by_every_transform():
    for make in (transforms.scale_by_adam, lambda: transforms.trace(0.9), lambda: transforms.clip(1.0)):
        transform = make()
        with pytest.raises(ValueError, match=r": w .*\(6,\) in updates, \(2, 3\) in params"):
            transform.update(PARAMS | {"w": mx.ones(6)}, transform.init(PARAMS), PARAMS)
        with pytest.raises(ValueError, match=r": b .* params, not in updates"):
            transform.update({"w": PARAMS["w"]}, transform.init(PARAMS), PARAMS)


def test_parameters_that_are_one_array_have_a_path_too():
    transform = transforms.trace(0.9)
    with pytest.raises(ValueError, match=r"trace: state.trace .*\(2,\) in the state, \(3,\)"):
        transform.update(mx.ones(3), transform.init(mx.ones(2)))
    with pytest.raises(ValueError, match=r"trace: the tree .*\(3,\) in updates, \(2,\) in params"):
        transform.update(mx.ones(3), transform.init(mx.ones(2)), mx.ones(2))
