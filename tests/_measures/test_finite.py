"""Finding NaN and infinity."""

import mlx.core as mx
import pytest

from purestep.metrics import nonfinite_paths


def test_every_broken_leaf_is_named_and_no_other():
    value = {
        "a": mx.array([1.0, mx.nan]),
        "b": [mx.array([-mx.inf], mx.bfloat16), mx.array(3), None],
        "c": mx.zeros((0,)),
        "d": mx.array([65504.0], mx.float16),
    }
    assert nonfinite_paths(value) == ["a", "b.0"]
    assert nonfinite_paths({"n": mx.array(3)}) == nonfinite_paths({}) == []


def test_what_is_no_array_is_refused_with_its_path():
    with pytest.raises(TypeError, match=r"nonfinite_paths: a\.b must be an array, got float"):
        nonfinite_paths({"a": {"b": 1.0}})
