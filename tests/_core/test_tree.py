"""Trees: paths, maps, specs."""

import gc
import json
import time
from collections import OrderedDict

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purestep import tree
from tests.trees import Pair, arrays, containers, same_bits


def test_paths_keep_field_names_and_tell_keys_that_look_alike_apart():
    value = {
        "layers": [Pair(1, (2,)), {}],
        "0": 3,
        "a.b": 4,
        0: 5,
        "a": {"b": 6},
        "": 7,
        'q"': 8,
        "none": None,
    }
    assert tree.paths(value) == [
        "layers.0.first",
        "layers.0.second.0",
        '"0"',
        '"a.b"',
        "[0]",
        "a.b",
        '""',
        '"q\\""',
    ]


@given(containers(arrays()))
def test_paths_are_unique(value):
    paths = tree.paths(value)
    assert len(set(paths)) == len(paths)


@given(containers(arrays()))
def test_mapping_the_identity_gives_the_same_tree(value):
    assert same_bits(tree.map(lambda x: x, value), value)
    assert tree.spec(tree.map(lambda x: x, value)) == tree.spec(value)


@given(containers(arrays()))
def test_unflatten_undoes_leaves(value):
    assert same_bits(tree.unflatten(value, tree.leaves(value)), value)


@given(containers(arrays()))
def test_a_map_with_path_meets_the_leaves_in_the_order_of_items(value):
    met = []
    tree.map_with_path(lambda path, leaf: met.append(path), value)
    assert met == tree.paths(value) == [path for path, _ in tree.spec_items(tree.spec(value))]


@given(containers(arrays()))
def test_a_spec_is_the_same_after_a_round_trip_through_json(value):
    described = tree.spec(value)
    plain = tree.to_plain(described)
    restored = json.loads(json.dumps(plain))
    assert restored == plain
    assert tree.from_plain(restored) == described
    assert hash(tree.from_plain(restored)) == hash(described)
    assert not tree.differences(plain, described)
    assert tree.spec_items(plain) == tree.spec_items(described)
    paths = [[segments for segments, _ in tree.spec_nodes(each)] for each in (plain, described)]
    assert paths[0] == paths[1]


def test_the_plain_form_of_a_spec_is_that_of_files():
    value = {"w": [mx.zeros((2, 3), mx.bfloat16), None], 3: Pair((), 1.0)}
    assert tree.to_plain(tree.spec(value)) == [
        "dict",
        [
            ["w", ["list", [["array", "bfloat16", [2, 3]], ["none"]]]],
            [3, ["namedtuple", "Pair", [["first", ["tuple", []]], ["second", ["other", "float"]]]]],
        ],
    ]


@given(containers(arrays()), containers(arrays()))
def test_alike_agrees_with_the_differences_of_specs(first, second):
    assert tree.alike(first, second) == (not tree.differences(tree.spec(first), tree.spec(second)))
    assert tree.alike(first, first)


def test_a_map_matches_dict_keys_by_name_not_by_order():
    assert tree.map(lambda x, y: (x, y), {"a": 1, "b": 2}, {"b": 20, "a": 10}) == {"a": (1, 10), "b": (2, 20)}


@pytest.mark.parametrize(
    ("first", "other", "path"),
    [
        ({"a": [1, 2]}, {"a": [1]}, "a"),
        ({"a": {"x": 1}}, {"a": {"y": 1}}, "a"),
        ({"a": [1]}, {"a": (1,)}, "a"),
        ({"a": {"x": 1}}, {"a": {"x": {"z": 1}}}, "a.x"),
        ({"a": None}, {"a": 1}, "a"),
        ({"a": 1}, {"a": None}, "a"),
        ([Pair(1, 2)], [(1, 2)], "0"),
        (1, {"a": 1}, "the tree"),
    ],
)
def test_a_map_of_trees_built_differently_names_the_path(first, other, path):
    with pytest.raises(ValueError, match=f"^tree.map: {path} is "):
        tree.map(lambda *nodes: nodes, first, other)


def test_unflatten_refuses_another_number_of_leaves():
    with pytest.raises(ValueError, match="tree.unflatten: .*1 .* 2$"):
        tree.unflatten({"a": 1, "b": 2}, [1])
    with pytest.raises(ValueError, match="tree.unflatten: .*3 .* 2$"):
        tree.unflatten({"a": 1, "b": 2}, [1, 2, 3])


def test_keys_that_are_neither_strings_nor_integers_are_refused():
    with pytest.raises(TypeError, match="tree: dict keys .* got 1.5"):
        tree.paths({1.5: 1})


def test_only_plain_containers_are_containers():
    assert tree.paths(OrderedDict(a=1)) == [""]


def test_differences_list_every_path():
    got = {"a": mx.zeros(2), "b": [mx.zeros(1)], "c": mx.zeros(1), "d": Pair(mx.zeros(1), None)}
    want = {"a": mx.zeros(3, mx.int32), "b": (mx.zeros(1),), "e": mx.zeros(1), "d": Pair(mx.zeros(1), {})}
    assert tree.differences(tree.spec(got), tree.spec(want), "the file", "like") == [
        "a has shape (2,) in the file, (3,) in like",
        "a has dtype float32 in the file, int32 in like",
        "b is a list in the file, a tuple in like",
        "c is in the file, not in like",
        "d.second is None in the file, a dict in like",
        "e is in like, not in the file",
    ]


def test_the_norm_is_summed_in_float32_whatever_the_leaves_are():
    leaves = [mx.full((1,), 2.0, mx.bfloat16) for _ in range(2000)]
    assert tree.norm(leaves).item() == pytest.approx(np.sqrt(4.0 * 2000), rel=1e-6)
    assert tree.norm({"a": mx.array(3.0), "b": [mx.array([4.0])], "c": mx.zeros((0, 2))}).item() == 5.0
    assert tree.norm({}).item() == 0.0


@given(st.sampled_from([mx.float16, mx.bfloat16, mx.float32]))
def test_cast_leaves_integers_alone(dtype):
    value = tree.cast({"w": mx.ones(2), "n": mx.array(3), "f": mx.array(True)}, dtype)
    assert [value[key].dtype for key in "wnf"] == [dtype, mx.int32, mx.bool_]


def test_where_and_zeros_like_and_size_and_fields():
    value = {"a": mx.ones((2, 2), mx.bfloat16), "p": Pair(mx.array(1.0), [Pair(mx.array(2.0), None)])}
    zeros = tree.zeros_like(value)
    assert tree.alike(zeros, value)
    assert tree.zeros_like(value, mx.float32)["a"].dtype == mx.float32
    assert same_bits(tree.where(mx.array(True), value, zeros), value)
    assert same_bits(tree.where(mx.array(False), value, zeros), zeros)
    assert tree.size(value) == 6
    assert [path for path, _ in tree.fields(value, "first")] == ["p.first", "p.second.0.first"]


@pytest.mark.parametrize(
    "use",
    [
        tree.items,
        tree.leaves,
        lambda value: tree.fields(value, "first"),
        lambda value: tree.map_with_path(lambda path, x: x + len(path), value),
        lambda value: tree.map(lambda x, y: x + y, value, value),
    ],
)
def test_nothing_is_kept_of_a_tree_that_was_seen(use):
    before = mx.get_active_memory()
    gc.disable()
    try:
        value = {"a": mx.ones(100_000), "p": Pair(mx.ones(100_000), [None])}
        mx.eval(value)
        mx.eval(use(value))
        del value
        for _ in range(100):  # CUDA returns buffers with a delay
            if mx.get_active_memory() < before + 100_000:
                return
            time.sleep(0.01)
        pytest.fail(f"{mx.get_active_memory() - before} bytes are still held")
    finally:
        gc.enable()


def test_the_norm_of_many_and_of_large_leaves_keeps_its_digits():
    from purestep.testing.samples import array

    leaves = [mx.abs(array(n, shape)) for n, shape in enumerate([(400, 300), (50, 60), (7,)] + [(90,)] * 300)]
    wide = sum(float(np.sum(np.square(np.array(leaf).astype(np.float64)))) for leaf in leaves)
    assert tree.norm(leaves).item() == pytest.approx(np.sqrt(wide), rel=1e-6)


def test_what_holds_no_leaves_is_put_back():
    like = {"body": [{}, {"w": 0}, {}], "none": None, "pair": Pair(0, {})}
    read = {"pair": {"first": 2}, "body": [{}, {"w": 1}]}
    fitted = tree.fitted(read, like)
    assert fitted == {"body": [{}, {"w": 1}, {}], "none": None, "pair": Pair(2, {})}
    assert list(fitted) == list(like)
    for other in ({"body": [{}, {"w": 1}]}, {**read, "more": 1}):
        assert tree.fitted(other, like) is other
