"""flatten: the same numbers as leaf by leaf."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep.transforms import flatten
from tests._transforms.walking import noting
from tests.trees import like

PARAMS = {
    "w": mx.ones((2, 3)),
    "b": [mx.ones(3, mx.bfloat16), None],
    "empty": mx.zeros((0, 2)),
    "a": mx.array(2.0),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.adamw(0.1, weight_decay=0.3),
        lambda: ps.chain(transforms.clip_by_global_norm(0.5), optimizers.sgd(0.1, 0.9)),
    ],
)
def test_a_packed_elementwise_transform_is_the_leafwise_one(make):
    params = tree.cast(PARAMS, mx.float32)  # without flatten, clipping rounds bfloat16 updates once more
    plain, packed = make(), flatten(make())
    states = plain.init(params), packed.init(params)
    for seed in range(3):
        gradients = like(params, seed)
        want, plain_state = plain.update(gradients, states[0], params)
        got, packed_state = packed.update(gradients, states[1], params)
        states = plain_state, packed_state
        assert tree.alike(got, want)
        for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
            assert mx.allclose(a, b, rtol=1e-6)


def test_updates_of_every_dtype_come_out_as_float32():
    updates, _ = flatten(transforms.scale(0.5)).update(like(PARAMS, 0), (), PARAMS)
    assert tree.alike(updates, tree.cast(PARAMS, mx.float32))


def test_the_state_holds_one_vector():
    assert flatten(transforms.trace(0.9)).init(PARAMS).trace.shape == (10,)


def test_dicts_in_another_order_are_packed_alike():
    gradients = like(PARAMS, 0)
    reordered = dict(reversed(gradients.items()))
    transform = flatten(transforms.trace(0.9))
    state = transform.init(PARAMS)
    _, first = transform.update(gradients, state, PARAMS)
    updates, second = transform.update(reordered, state, PARAMS)
    assert mx.array_equal(first.trace, second.trace).item()
    assert mx.array_equal(updates["w"], gradients["w"]).item()


def test_extra_arguments_built_like_the_updates_are_packed_and_a_known_norm_is_used():
    inner, seen = noting()
    gradients = like(PARAMS, 0)
    transform = flatten(inner)
    transform.update(gradients, (), PARAMS, gradients=gradients, hessian=PARAMS, value=3, other=[1])
    assert seen["gradients"] is seen["updates"]
    assert seen["hessian"].shape == (10,)
    assert (seen["value"], seen["other"]) == (3, [1])


def test_a_tree_without_leaves_and_a_bare_array_work():
    transform = flatten(transforms.trace(0.9))
    assert transform.update({"a": None}, transform.init({"a": None}))[0] == {"a": None}
    bare = mx.ones((2, 2))
    assert transform.update(bare, transform.init(bare))[0].shape == (2, 2)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="flatten: inner .* GradientTransform"):
        flatten(optimizers.adam)
