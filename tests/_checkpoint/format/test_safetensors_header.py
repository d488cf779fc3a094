"""Headers of safetensors files: accepted are those that the safetensors package accepts."""

import json
import struct

import mlx.core as mx
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep.checkpoint import CorruptError

ARRAYS = {"a": np.arange(3, dtype=np.float32), "b.c": np.zeros((2, 0), np.int8), "d": np.array(2, np.uint16)}
NAMES = {"F32": "float32", "I8": "int8", "U16": "uint16"}


def accepted(path):
    """Return what the package says, or `None` if it refuses the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            shapes = {n: (NAMES.get(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
            return file.metadata() or {}, shapes
    except SafetensorError:
        return None


def ours(path):
    try:
        return tuple(read_safetensors_header("load", path))
    except CorruptError as error:
        return None if "is cut or not a safetensors file" in str(error) else error


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_names_shapes_dtypes_and_metadata_are_those_of_the_package(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path, metadata={"format": "pt"})
    assert ours(path) == accepted(path)
    assert read_safetensors_header("load", path).leaves["b.c"] == ("int8", (2, 0))
    for dtype in (mx.bool_, mx.bfloat16, mx.complex64, mx.float16, mx.uint64, mx.int32):
        mx.save_safetensors(str(path), {"x": mx.zeros((1, 2), dtype)})
        assert read_safetensors_header("load", path) == ({}, {"x": (str(dtype).rpartition(".")[2], (1, 2))})


def test_every_changed_byte_and_every_cut_is_judged_as_by_the_package(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(ARRAYS, path, metadata={"k": "v"})
    whole = path.read_bytes()
    wrong = []
    for position in range(len(whole) - 14):  # the arrays' 14 bytes say nothing of the header
        for other in (whole[position] ^ 1, 0x22, 0x30):
            path.write_bytes(whole[:position] + bytes([other]) + whole[position + 1 :])
            theirs, mine = accepted(path), ours(path)
            if theirs is not None and None in dict(theirs[1].values()):
                assert mine is not None  # a dtype that this test has no name for
            elif theirs != mine:
                wrong.append((position, other, theirs, mine))
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert ours(path) is None
    path.write_bytes(whole + b"\0")
    assert ours(path) is None
    assert not wrong


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": F32, "b": F32}, bytes(4)),
        ({"a": F32, "b": {**F32, "data_offsets": [5, 9]}}, bytes(9)),
        ({"a": {**F32, "shape": [2]}}, bytes(4)),
        ({"a": {**F32, "shape": [-1]}}, bytes(4)),
        ({"a": {**F32, "shape": [1.0]}}, bytes(4)),
        ({"a": {**F32, "data_offsets": [4, 0]}}, bytes(4)),
        ({"a": {**F32, "dtype": "F33"}}, bytes(4)),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        ({"__metadata__": {"a": 1}}, b""),
        (b'{"a":1', b""),
        (b"[]", b""),
        (b"\xff\xff", b""),
        (b"[" * 100_000, b""),
        (b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}', b""),
    ],
)
def test_headers_that_break_a_rule_are_refused(tmp_path, header, data):
    path = tmp_path / "x.safetensors"
    write(path, header, data)
    assert ours(path) is None


def test_a_length_beyond_the_file_or_the_limit_reads_nothing(tmp_path):
    for length in (2**63, 2**64 - 1, 10**8 + 1, 1, 0):
        write(tmp_path / "x", b"{}", length=length)
        assert ours(tmp_path / "x") is None
    with pytest.raises(CorruptError, match="is missing"):
        read_safetensors_header("load", tmp_path / "absent")


def test_a_fault_of_the_whole_text_is_named_before_that_of_an_array(tmp_path):
    odd = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}'
    for end, reason in (
        (b"}", "the bytes of 'a' are not where"),
        (b"", "it is no object"),
        (b"}]", "goes on"),
    ):
        (tmp_path / "s").write_bytes(len(odd + end).to_bytes(8, "little") + odd + end)
        with pytest.raises(CorruptError, match=reason):
            read_safetensors_header("load", tmp_path / "s")
