"""Restoring into another template: what is refused, what may pass, what is said of it."""

import inspect
import re
import warnings
from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import tree
from purestep._checkpoint.restoring import restore
from purestep.checkpoint import Checkpointer, RestoreWarning, from_bytes, load, save, to_bytes
from tests.refusals import assert_listed
from tests.trees import Pair, same_bits


class Moments(NamedTuple):
    count: mx.array
    mu: dict


STORED = {
    "encoder": {"w": mx.arange(6.0).reshape(2, 3), "b": mx.zeros(2)},
    "head": mx.ones((4, 2)),
    "opt": (Moments(mx.array(3), {"w": mx.ones(2)}), None, {}),
}


@pytest.fixture(params=["file", "bytes"])
def reading(request, tmp_path):
    if request.param == "file":
        save(tmp_path / "s.safetensors", STORED)
        return lambda **options: load(tmp_path / "s.safetensors", **options)
    data = to_bytes(STORED)
    return lambda **options: from_bytes(data, **options)


def test_without_a_template_plain_containers_come_back(reading):
    restored = reading()
    moments = {"count": mx.array(3), "mu": {"w": mx.ones(2)}}
    assert same_bits(restored, {**STORED, "opt": (moments, None, {})})


def test_none_where_a_masked_state_now_holds_nothing_is_read(tmp_path):
    params = {"w": mx.ones((2, 3)), "b": mx.ones(3)}
    transform = ps.transforms.masked(ps.optimizers.adam(0.1), {"w": True, "b": False})
    state = transform.init(params)
    adam = state.inner_state[0]
    old = state._replace(
        inner_state=(adam._replace(mu=adam.mu | {"b": None}, nu=adam.nu | {"b": None}), state.inner_state[1])
    )
    save(tmp_path / "s.safetensors", old)
    for restored in (load(tmp_path / "s.safetensors", like=state), from_bytes(to_bytes(old), like=state)):
        assert same_bits(restored, state)
    with pytest.raises(ValueError, match="w .*None in the file, .*array .*in like"):
        from_bytes(to_bytes({"w": None}), like={"w": mx.ones(2)})
    with pytest.raises(ValueError, match="w .*None in the file, .*tuple in like"):
        from_bytes(to_bytes({"w": None}), like={"w": (mx.ones(2),)})


def test_every_difference_is_listed_at_once(reading):
    like = {
        "encoder": {"w": mx.zeros((2, 4)), "b": mx.zeros(2, mx.int32)},
        "tail": mx.zeros(1),
        "opt": (Moments(mx.array(0), {"w": mx.ones(2)}), None, {}),
    }
    with pytest.raises(ValueError, match="like:") as caught:
        reading(like=like)
    assert_listed(
        caught.value,
        "encoder.b ... float32 in the file, int32 in like",
        "encoder.w ... (2, 3) in the file, (2, 4) in like",
        "head ... in the file, not in like",
        "tail ... in like, not in the file",
    )


def test_cast_converts_floating_arrays_and_says_so(reading):
    like = {**STORED, "head": mx.zeros((4, 2), mx.bfloat16)}
    with pytest.raises(ValueError, match="head .*float32 in the file, bfloat16 in like"):
        reading(like=like)
    with pytest.warns(RestoreWarning, match=r"head .*cast from float32 to bfloat16$"):
        restored = reading(like=like, cast=True)
    assert same_bits(restored, {**STORED, "head": mx.ones((4, 2), mx.bfloat16)})
    integers = {**STORED, "head": mx.zeros((4, 2), mx.int32)}
    with pytest.raises(ValueError, match="head .*float32 in the file, int32 in like"):
        reading(like=integers, cast=True)


def test_partial_keeps_the_template_where_it_may_and_nowhere_else(reading):
    like = {**STORED, "head": mx.full((7, 2), 5.0), "extra": mx.array(9)}
    with pytest.raises(ValueError, match="extra .*in like, not in the file") as caught:
        reading(like=like, partial=["head"])
    assert "head" not in str(caught.value).partition("like:")[2]
    with pytest.warns(RestoreWarning) as warned:
        restored = reading(like=like, partial=["head", "extra"])
    assert same_bits(restored, like)
    assert len(warned) == 1
    assert re.search("extra .*kept from like", str(warned[0].message))
    assert re.search(r"head .*\(4, 2\) .*\(7, 2\) .*kept from like", str(warned[0].message))


def test_partial_leaves_what_the_template_lacks(reading):
    with pytest.warns(RestoreWarning, match=r"head .*left .*\n  opt\.0\.count .*left "):
        restored = reading(like={"encoder": STORED["encoder"]}, partial=["head", "opt.*"])
    assert same_bits(restored, {"encoder": STORED["encoder"]})


def test_names_are_changed_by_a_map_of_leading_parts_or_a_function(reading):
    like = {"body": {"enc": STORED["encoder"]}, **{k: v for k, v in STORED.items() if k != "encoder"}}
    with pytest.warns(RestoreWarning, match=r"encoder\.w .*read as body\.enc\.w"):
        restored = reading(like=like, rename={"encoder": "body.enc"})
    assert same_bits(restored, like)
    with pytest.warns(RestoreWarning):
        restored = reading(like=like, rename=lambda path: path.replace("encoder", "body.enc"))
    assert same_bits(restored, like)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"enc": "body"}}, "rename: enc .*not in the file"),
        ({"rename": {"encoder.w": "x", "encoder.b": "x"}}, "encoder.w and encoder.b .*both .* x\\n"),
        ({"partial": ["nothing*"]}, "partial .*'nothing\\*' .*no path"),
    ],
)
def test_options_that_do_nothing_or_too_much_are_refused(reading, options, message):
    with pytest.raises(ValueError, match=message):
        reading(like=STORED, **options)


def test_options_without_a_template_and_patterns_without_a_list_are_refused(reading):
    with pytest.raises(ValueError, match="cast, partial and rename .* like$"):
        reading(cast=True)
    with pytest.raises(TypeError, match="partial .* list .*got the string 'head'"):
        reading(like=STORED, partial="head")


def test_named_tuples_come_back_as_the_types_given(tmp_path):
    stored = restore.StoredTree("there", tree.spec(Moments(None, {})), {}, lambda _: {})
    assert restore.restore("load", stored, None, types=[Moments]) == Moments(None, {})
    assert restore.restore("load", stored, None) == {"count": None, "mu": {}}


def renamed_everywhere(path):
    return path.replace("enc", "encoder")


@pytest.mark.parametrize("rename", [{"params.enc": "params.encoder"}, renamed_everywhere])
def test_renaming_does_not_hide_a_container_of_another_type(rename):
    stored = {
        "params": {"enc": mx.ones(2)},
        "opt": Moments(mx.array(3), {"w": mx.ones(1)}),
        "none": None,
        "empty": {},
        "l": [mx.ones(1)],
    }
    like = {
        "params": {"encoder": mx.zeros(2)},
        "opt": {"count": mx.array(0), "mu": {"w": mx.ones(1)}},
        "none": {},
        "empty": [],
        "l": (mx.ones(1),),
    }
    with pytest.raises(ValueError, match="^checkpoint.from_bytes: data .*like:") as caught:
        from_bytes(to_bytes(stored), like=like, rename=rename)
    assert_listed(
        caught.value,
        "empty ... dict in the file, ... list in like",
        "l ... list in the file, ... tuple in like",
        "none ... None in the file, ... dict in like",
        "opt ... Moments in the file, ... dict in like",
    )


def test_moments_of_adam_are_none_of_adabelief_by_any_name():
    adam = ps.TrainState.create({"enc": mx.ones(2)}, ps.optimizers.adam(0.1))
    like = ps.TrainState.create({"encoder": mx.ones(2)}, ps.optimizers.adabelief(0.1))
    with pytest.raises(
        ValueError, match=r"opt_state\.0 .*ScaleByAdamState in the file, .*ScaleByBeliefState in like"
    ):
        from_bytes(to_bytes(adam), like=like, rename=renamed_everywhere)
    same = ps.TrainState.create({"encoder": mx.zeros(2)}, ps.optimizers.adam(0.1))
    with pytest.warns(RestoreWarning):
        restored = from_bytes(to_bytes(adam), like=same, rename=renamed_everywhere)
    assert restored.params["encoder"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("stored", "like", "rename", "line"),
    [
        # what is renamed takes its containers along, also to another depth
        (
            {"a": [mx.ones(1)]},
            {"b": {"c": (mx.ones(1),)}},
            {"a": "b.c"},
            r"b\.c .*list .*, a tuple in like",
        ),
        ({"a": {"b": [mx.ones(1)]}}, {"b": (mx.ones(1),)}, {"a": ""}, "b .*list .*, a tuple in like"),
        ({"a": [mx.ones(1)]}, (mx.ones(1),), {"a": ""}, "the tree .*list .*, a tuple in like"),
        ({"a": (None, mx.ones(1))}, {"b": ({}, mx.ones(1))}, {"a": "b"}, r"b\.0 .*None .*, a dict in like"),
        ({"a": ({}, mx.ones(1))}, {"b": (mx.ones(1),) * 2}, {"a": "b"}, r"b\.0 .*dict .*, an array"),
        ({"a": None, "c": mx.ones(1)}, {"c": mx.ones(1)}, {"c": "c"}, "  a .*in the file, not in like"),
        ({"c": mx.ones(1)}, {"c": mx.ones(1), "a": {}}, {"c": "c"}, "  a .*in like, not in the file"),
        # two containers become one
        (
            {"a": {"x": mx.ones(1)}, "b": Pair(mx.ones(1), None)},
            {"c": {"x": mx.ones(1), "first": mx.ones(1), "second": None}},
            lambda path: "c" + path[1:],
            "c .*Pair in the file, .*dict in like",
        ),
    ],
)
def test_containers_are_compared_along_renamed_paths(stored, like, rename, line):
    with pytest.raises(ValueError, match=line):
        from_bytes(to_bytes(stored), like=like, rename=rename)


@pytest.mark.parametrize(
    ("stored", "like", "rename", "partial"),
    [
        ({"a": [mx.ones(1)]}, {"b": {"c": [mx.ones(1)]}}, {"a": "b.c"}, ()),
        ({"enc": {"w": mx.ones(1), "n": None}}, {"w": mx.ones(1), "n": None}, {"enc": ""}, ()),
        (
            {"w": [mx.ones(1)]},
            Pair({"w": [mx.ones(1)]}, mx.ones(3)),
            lambda path: "first." + path,
            ["second"],
        ),
        (Pair({"w": mx.ones(1)}, mx.ones(2)), {"w": mx.ones(1)}, {"first": ""}, ["second"]),
        ({"a.b": {"c": mx.ones(1)}}, {"x": {"c": mx.ones(1)}}, {'"a.b"': "x"}, ()),
    ],
)
def test_a_part_may_move_to_another_depth(stored, like, rename, partial):
    with pytest.warns(RestoreWarning):
        restored = from_bytes(to_bytes(stored), like=like, rename=rename, partial=partial)
    assert same_bits(restored, like)


def test_partial_lets_a_container_pass_only_where_it_matches():
    stored = {"opt": Moments(mx.array(3), {"w": mx.ones(2)}), "w": mx.ones(1)}
    like = {"opt": {"count": mx.array(0), "mu": {"w": mx.zeros(2)}}, "w": mx.ones(1)}
    with pytest.raises(ValueError, match="opt .*Moments in the file, .*dict in like"):
        from_bytes(to_bytes(stored), like=like, partial=["w"])
    with pytest.warns(RestoreWarning, match="opt .*Moments in the file, .*dict in like: let pass"):
        restored = from_bytes(to_bytes(stored), like=like, partial=["opt"])
    assert restored["opt"]["count"].item() == 3


def test_shape_and_dtype_of_a_path_are_both_told(reading):
    like = {**STORED, "head": mx.zeros((4, 3), mx.int32)}
    for options in ({}, {"partial": ["encoder.w"]}):
        with pytest.raises(ValueError, match=r"head .*\(4, 2\) .*\n  head .*float32 in the file, int32"):
            reading(like=like, **options)
    with pytest.warns(RestoreWarning, match=r"head .*shape .* and head .*dtype .*: kept from like"):
        reading(like=like, partial=(text for text in ["head"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": ["encoder"]}, r"rename .*function, got \['encoder'\]"),
        ({"rename": {"encoder": 3}}, "rename .*paths, got 'encoder': 3"),
        ({"rename": {1: "encoder"}}, "rename .*paths, got 1: 'encoder'"),
        ({"rename": lambda path: None}, "rename .*path, got None for 'encoder.w'"),
        ({"partial": 3}, "partial .*list .*got 3$"),
        ({"partial": ["head", 3]}, "partial .*list .*got 3 among them"),
    ],
)
def test_options_of_another_type_are_refused(reading, options, message):
    with pytest.raises(TypeError, match=message):
        reading(like=STORED, **options)


def test_the_warning_points_at_the_line_that_called(tmp_path):
    stored, like = {"a": mx.ones(1)}, {"a": mx.ones(1, mx.float16)}
    save(tmp_path / "s", stored)
    data = to_bytes(stored)
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(stored, step=1)
        calls = [
            lambda: load(tmp_path / "s", like=like, cast=True),
            lambda: from_bytes(data, like=like, cast=True),
            lambda: checkpointer.restore(like=like, cast=True),
            lambda: checkpointer.restore(1, like=like, cast=True),
        ]
        for call in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            assert [(each.filename, each.lineno) for each in caught] == [
                (__file__, inspect.getsourcelines(call)[1])
            ]
