"""Restoring into another template: what is refused, what may pass, what is said of it."""

from typing import NamedTuple

import mlx.core as mx
import pytest

from purestep.checkpoint import RestoreWarning, from_bytes, load, restore, save, to_bytes
from tests.trees import same_bits


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


def test_every_difference_is_listed_at_once(reading):
    like = {
        "encoder": {"w": mx.zeros((2, 4)), "b": mx.zeros(2, mx.int32)},
        "tail": mx.zeros(1),
        "opt": (Moments(mx.array(0), {"w": mx.ones(2)}), None, {}),
    }
    with pytest.raises(ValueError, match="does not fit like") as caught:
        reading(like=like)
    assert sorted(str(caught.value).split("\n  ")[1:]) == [
        "encoder.b has dtype float32 in the file, int32 in like",
        "encoder.w has shape (2, 3) in the file, (2, 4) in like",
        "head is in the file, not in like",
        "tail is in like, not in the file",
    ]


def test_cast_converts_floating_arrays_and_says_so(reading):
    like = {**STORED, "head": mx.zeros((4, 2), mx.bfloat16)}
    with pytest.raises(ValueError, match="head has dtype float32 in the file, bfloat16 in like"):
        reading(like=like)
    with pytest.warns(RestoreWarning, match=r"head was cast from float32 to bfloat16$"):
        restored = reading(like=like, cast=True)
    assert same_bits(restored, {**STORED, "head": mx.ones((4, 2), mx.bfloat16)})
    integers = {**STORED, "head": mx.zeros((4, 2), mx.int32)}
    with pytest.raises(ValueError, match="head has dtype float32 in the file, int32 in like"):
        reading(like=integers, cast=True)


def test_partial_keeps_the_template_where_it_may_and_nowhere_else(reading):
    like = {**STORED, "head": mx.full((7, 2), 5.0), "extra": mx.array(9)}
    with pytest.raises(ValueError, match="extra is in like, not in the file") as caught:
        reading(like=like, partial=["head"])
    assert "head" not in str(caught.value).partition("like:")[2]
    with pytest.warns(RestoreWarning) as warned:
        restored = reading(like=like, partial=["head", "extra"])
    assert same_bits(restored, like)
    assert len(warned) == 1
    assert "extra was kept from like" in str(warned[0].message)
    assert "head has shape (4, 2) in the file, (7, 2) in like: kept from like" in str(warned[0].message)


def test_partial_leaves_what_the_template_lacks(reading):
    with pytest.warns(
        RestoreWarning, match=r"head was left in the file\n  opt\.0\.count was left in the file"
    ):
        restored = reading(like={"encoder": STORED["encoder"]}, partial=["head", "opt.*"])
    assert same_bits(restored, {"encoder": STORED["encoder"]})


def test_names_are_changed_by_a_map_of_leading_parts_or_a_function(reading):
    like = {"body": {"enc": STORED["encoder"]}, **{k: v for k, v in STORED.items() if k != "encoder"}}
    with pytest.warns(RestoreWarning, match=r"encoder\.w was read as body\.enc\.w"):
        restored = reading(like=like, rename={"encoder": "body.enc"})
    assert same_bits(restored, like)
    with pytest.warns(RestoreWarning):
        restored = reading(like=like, rename=lambda path: path.replace("encoder", "body.enc"))
    assert same_bits(restored, like)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"enc": "body"}}, "rename: enc is not in the file"),
        ({"rename": {"encoder.w": "x", "encoder.b": "x"}}, "encoder.w and encoder.b would both be named x"),
        ({"partial": ["nothing*"]}, "partial pattern 'nothing\\*' matches no path"),
    ],
)
def test_options_that_do_nothing_or_too_much_are_refused(reading, options, message):
    with pytest.raises(ValueError, match=message):
        reading(like=STORED, **options)


def test_options_without_a_template_and_patterns_without_a_list_are_refused(reading):
    with pytest.raises(ValueError, match="cast, partial and rename need a template: give like"):
        reading(cast=True)
    with pytest.raises(TypeError, match="partial must be a list of patterns, got the string 'head'"):
        reading(like=STORED, partial="head")


def test_named_tuples_come_back_as_the_types_given(tmp_path):
    stored = restore.Stored(
        "there", ["namedtuple", "Moments", [["count", ["none"]], ["mu", ["dict", []]]]], lambda _: {}
    )
    assert restore.restore("load", stored, None, types=[Moments]) == Moments(None, {})
    assert restore.restore("load", stored, None) == {"count": None, "mu": {}}
