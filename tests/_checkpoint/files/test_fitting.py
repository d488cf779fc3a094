"""`convert`: from the arrays of a file to those of the template, read when they are needed."""

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from purestep.checkpoint import CorruptError, RestoreWarning, load_weights
from tests.refusals import assert_listed
from tests.trees import same_bits

LIKE = {"q": mx.zeros((2, 3)), "k": mx.zeros((2, 3)), "sum": mx.zeros(()), "none": {}}


@pytest.fixture
def file(tmp_path):
    save_file(
        {"qk": np.arange(12, dtype=np.float32).reshape(4, 3), "unused": np.ones(5, np.int8)},
        tmp_path / "m.safetensors",
    )
    return tmp_path / "m.safetensors"


def split(arrays):
    arrays.pop("unused")
    q, k = mx.split(arrays["qk"], 2)
    return {"q": q, "k": k.T.T, "sum": arrays["qk"].sum()}


WANT = {
    "q": mx.arange(6, dtype=mx.float32).reshape(2, 3),
    "k": mx.arange(6, 12, dtype=mx.float32).reshape(2, 3),
    "sum": mx.array(66.0),
    "none": {},
}


def test_arrays_are_split_and_computed_and_stay_when_the_file_is_gone(file):
    found = load_weights(file, like=LIKE, convert=split)
    save_file({"qk": np.zeros((4, 3), np.float32)}, file)
    file.unlink()
    assert same_bits(found, WANT)


def test_differences_after_conversion_are_listed_cast_and_left_out(file):
    def wrong(arrays):
        return {**split(arrays), "k": mx.ones(3), "q": WANT["q"].astype(mx.bfloat16), "more": mx.ones(1)}

    with pytest.raises(ValueError, match=r"^checkpoint\.load_weights: .*does not fit like") as error:
        load_weights(file, like=LIKE, convert=wrong)
    assert_listed(
        error.value,
        "q has dtype bfloat16 in the file, float32 in like; pass cast=True",
        "k has shape (3,) in the file, (2, 3) in like",
        "more is in the file, not in like",
    )
    with pytest.warns(RestoreWarning, match="q was cast"):
        found = load_weights(file, like=LIKE, convert=wrong, cast=True, partial=["k", "more"])
    assert same_bits(found, {**WANT, "k": LIKE["k"]})


def test_what_is_no_conversion_is_refused(file):
    for convert, kind, message in (
        (3, TypeError, "convert must be callable, got 3"),
        (lambda arrays: None, TypeError, "convert must return arrays by name, got NoneType"),
        (lambda arrays: {"q": 1.0}, TypeError, "convert must return arrays by name, got 'q': float"),
        (lambda arrays: {0: mx.ones(1)}, TypeError, "convert must return arrays by name, got 0: array"),
    ):
        with pytest.raises(kind, match=rf"^checkpoint\.load_weights: {message}$"):
            load_weights(file, like=LIKE, convert=convert)
    with pytest.raises(ValueError, match=r"^checkpoint\.load_weights: rename must be None with convert"):
        load_weights(file, like=LIKE, convert=split, rename={"a": ""})
    with pytest.raises(ZeroDivisionError):
        load_weights(file, like=LIKE, convert=lambda arrays: 1 / 0)


def test_a_file_that_is_cut_meanwhile_is_damage(file):
    def cutting(arrays):
        file.write_bytes(file.read_bytes()[:-20])
        return split(arrays)

    with pytest.raises(CorruptError, match=r"m\.safetensors"):
        load_weights(file, like=LIKE, convert=cutting)
