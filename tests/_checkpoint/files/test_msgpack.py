"""States as bytes."""

import json
import struct
import tracemalloc

import mlx.core as mx
import msgpack
import pytest
from hypothesis import given

import purestep as ps
from purestep._checkpoint.disk import device
from purestep._checkpoint.files import msgpack as own
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import seal
from purestep.checkpoint import CorruptError, from_bytes, to_bytes
from tests.training import start
from tests.trees import FLOATS, arrays, containers, same_bits


@given(value=containers(arrays((*FLOATS, mx.int32, mx.bool_, mx.complex64))))
def test_a_round_trip_gives_the_same_bits(value):
    assert same_bits(from_bytes(to_bytes(value), like=value), value)


def test_a_train_state_keeps_its_types():
    state = start()
    restored = from_bytes(to_bytes(state), like=state)
    assert type(restored) is ps.TrainState
    assert same_bits(restored, state)


def test_dict_order_does_not_matter():
    data = to_bytes({"a": mx.array(1), "b": mx.array(2)})
    assert from_bytes(data, like={"b": mx.array(0), "a": mx.array(0)})["b"].item() == 2


def test_leaves_over_a_chunk_are_split_and_joined(monkeypatch):
    monkeypatch.setattr(own, "_CHUNK", 16)
    value = {"w": mx.arange(23), "h": mx.arange(9).astype(mx.bfloat16)}
    data = to_bytes(value)
    assert [len(chunk) for chunk in msgpack.unpackb(data)[2:]] == [16] * 5 + [12] + [16, 2]
    assert same_bits(from_bytes(data, like=value), value)


def test_the_bytes_are_what_the_docstring_says():
    magic, header, chunk = msgpack.unpackb(to_bytes({"w": mx.array([1.0, -2.0])}))
    assert magic == "purestep"
    assert json.loads(header)["content"]["tree"] == ["dict", [["w", ["array", "float32", [2]]]]]
    assert struct.unpack("<2f", chunk) == (1.0, -2.0)


def test_data_cut_at_any_length_is_refused():
    data = to_bytes(start())
    for length in range(0, len(data), 13):
        with pytest.raises(CorruptError, match=r"^checkpoint.from_bytes: data is (cut or was not|damaged)"):
            from_bytes(data[:length], like=start())


HEADER = seal({"tree": ["array", "float32", [2]], "checksums": {"": checksum.of(b"12345678")}})


def sealed(spec, *chunks, sums=None):
    return msgpack.packb(["purestep", seal({"tree": spec, "checksums": sums or {"": "crc32:0"}}), *chunks])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "cut .*not written"),
        (b"\x07", "not written"),
        (msgpack.packb([1, 2]), "not written"),
        (msgpack.packb(["purestep"]), "not written"),
        (msgpack.packb({"format": 1}), "not written"),
        (msgpack.packb(["purestep", "{}"]), "not written"),
        (msgpack.packb(["purestep", HEADER.replace("2", "9", 1)]), "format 9, .* upgrade"),
        (msgpack.packb(["purestep", HEADER.replace("2", "1", 1)]), "format 1, .* that wrote it"),
        (msgpack.packb(["purestep", HEADER.replace("[2]", "[3]")]), "damaged: .*digest"),
        (sealed([]), "damaged: .*tree"),
        (msgpack.packb(["purestep", seal({"tree": ["none"]})]), "damaged: .*same arrays"),
        (sealed(["array", "pickle", [2]], b""), "damaged: .*unknown dtype .*shape"),
        (sealed(["array", "float32", [1 << 60]], b""), "damaged: .*hold the arrays"),
        (sealed(["array", "float32", [1 << 30, 4]], b""), "damaged: .*hold the arrays"),
        (msgpack.packb(["purestep", HEADER]), "damaged: .*hold the arrays"),
        (msgpack.packb(["purestep", HEADER, b"1234567"]), "damaged: .*as it was written"),
        (msgpack.packb(["purestep", HEADER, b"12345679"]), "damaged: .*as it was written"),
        (msgpack.packb(["purestep", HEADER, 3]), "not written"),
        (msgpack.packb(["purestep", HEADER, [b"12345678"]]), "not written"),
    ],
)
def test_foreign_and_damaged_data_is_refused(data, message):
    with pytest.raises(ValueError, match=f"^checkpoint.from_bytes: data .*{message}"):
        from_bytes(data, like=mx.zeros(2))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff" + b"\x90" * 4_000_000,  # a list of four thousand million empty lists
        b"\xdd\x00\x3d\x09\x00" + b"\x90" * 4_000_000,
        b"\xdd\x00\x3d\x09\x00" + b"\xc0" * 4_000_000,
        b"\x91" * 4_000_000,  # lists four million deep
        b"\x81\xa1a" * 1_000_000,
        b"\xc6\xff\xff\xff\xff" + b"0" * 4_000_000,
        b"\xdf\xff\xff\xff\xff" + b"\xc0" * 4_000_000,
    ],
    ids=["many empty", "as many as said", "nils", "deep", "deep maps", "long bin", "long map"],
)
def test_hostile_data_costs_no_more_memory_than_twice_its_size(data):
    tracemalloc.start()
    with pytest.raises(CorruptError):
        from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(data)


def test_mismatches_are_listed_by_path():
    with pytest.raises(
        ValueError, match=r"^checkpoint\.from_bytes: (.|\n)*w .*\(2,\) in the file, \(3,\) in like"
    ):
        from_bytes(to_bytes({"w": mx.zeros(2)}), like={"w": mx.zeros(3)})
    with pytest.raises(TypeError, match=r"^checkpoint.to_bytes: state\.w .*Python number 1"):
        to_bytes({"w": 1})


HOSTILE_SPECS = [
    ["array", [1], [2]],
    ["array", {}, [2]],
    ["array", "float8", [2]],
    ["array", "float32", [0, 2**40]],
    ["array", "float32", [0, 10**30]],
    ["array", "float32", [2**40, 2**40]],
    ["array", "float32", [True]],
    ["array", "float32", [-2, -3]],
    ["array", "float32", [1.0]],
    ["array", "float32", 2],
    ["array", "float32"],
    ["weird"],
    ["weird", [["none"]]],
    ["list", [["weird"]]],
    ["other", "Foo"],
    ["none", 1],
    ["dict", [[True, ["none"]]]],
    ["dict", [[None, ["none"]]]],
    ["dict", [["a", ["none"]], ["a", ["dict", []]]]],
    ["dict", {"a": ["none"]}],
    ["namedtuple", 3, [["a", ["none"]]]],
    ["namedtuple", "T", [[4, ["none"]]]],
    ["namedtuple", "T", [["a.b", ["none"]]]],
    ["namedtuple", "T", [["a", ["none"]], ["a", ["none"]]]],
    [],
    [[]],
    "array",
    None,
    {"array": 1},
]


@pytest.mark.parametrize("spec", HOSTILE_SPECS, ids=lambda spec: str(spec)[:40])
def test_hostile_specs_are_damage_never_another_error_and_never_a_tree(spec):
    for sums in ({}, {"": checksum.of(b"")}, {"a": checksum.of(b"")}):
        with pytest.raises(
            CorruptError, match="^checkpoint.from_bytes: data is damaged: .*(tree|unknown dtype)"
        ):
            from_bytes(sealed(spec, sums=sums))


def test_what_is_not_bytes_is_refused_and_every_kind_of_bytes_taken():
    for data in (None, "abc", 3, [b"abc"]):
        with pytest.raises(TypeError, match=r"^checkpoint.from_bytes: data .* bytes, .* got \w+$"):
            from_bytes(data)
    data = to_bytes({"w": mx.ones(3)})
    for kind in (bytearray, memoryview):
        assert from_bytes(kind(data))["w"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(CorruptError, match="^checkpoint.from_bytes: data .*not written"):
        from_bytes(b"")


def test_bytes_hold_what_safetensors_cannot():
    with mx.stream(mx.cpu):  # a GPU cannot make a double
        double = mx.array([0.1, 2], dtype=mx.float64)
        mx.eval(double)
    value = {"__metadata__": mx.ones(1), "\ud800": mx.array(1j), "d": double}
    assert same_bits(from_bytes(to_bytes(value)), value)
    assert same_bits(from_bytes(to_bytes(value), like=value), value)


def test_to_bytes_takes_an_eighth_more_than_its_result():
    to_bytes({"w": mx.ones(1_000)})  # what the first call keeps
    for value in ({"w": mx.ones(1_000_000)}, {str(n): mx.ones(50_000) for n in range(20)}):
        mx.eval(value)
        tracemalloc.start()
        data = to_bytes(value)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.125 * len(data) + 100_000


def test_from_bytes_copies_nothing_before_it_becomes_an_array():
    data = to_bytes({str(n): mx.ones(50_000) for n in range(20)})
    held, place = [], device.placed
    tracemalloc.start()

    def placed(array):
        held.append(tracemalloc.get_traced_memory()[0])
        return place(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "placed", placed)
        from_bytes(data)
    tracemalloc.stop()
    assert max(held) < len(data) / 50


def test_dict_keys_whose_hashes_are_equal_are_different_keys():
    state = {"": mx.zeros(1), 0: mx.zeros(2), -1: mx.zeros(3), -2: mx.zeros(4)}
    assert same_bits(from_bytes(to_bytes(state)), state)
