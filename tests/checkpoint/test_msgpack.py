"""States as bytes."""

import mlx.core as mx
import msgpack
import pytest
from hypothesis import given

import purestep as ps
from purestep.checkpoint import from_bytes, to_bytes
from tests.steps.test_train import start
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
    from purestep.checkpoint import msgpack as own

    monkeypatch.setattr(own, "_CHUNK", 16)
    value = {"w": mx.arange(23), "h": mx.arange(9).astype(mx.bfloat16)}
    data = to_bytes(value)
    assert [len(chunk) for chunk in msgpack.unpackb(data)["leaves"][0]] == [16] * 5 + [12]
    assert same_bits(from_bytes(data, like=value), value)


def test_data_cut_at_any_length_is_refused():
    data = to_bytes(start())
    for length in range(0, len(data), 13):
        with pytest.raises(
            ValueError, match=r"^checkpoint.from_bytes: data is (truncated or not msgpack|damaged)"
        ):
            from_bytes(data[:length], like=start())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "truncated or not msgpack"),
        (msgpack.packb([1, 2]), "was not written by purestep"),
        (msgpack.packb({"format": 2, "tree": ["none"]}), "has format 2, this purestep reads 1"),
        (msgpack.packb({"format": 1, "tree": []}), "does not describe a tree"),
        (msgpack.packb({"format": 1, "tree": ["array", "float32", [2]]}), "must hold 1 leaves"),
        (
            msgpack.packb({"format": 1, "tree": ["array", "float32", [2]], "leaves": [3]}),
            "does not hold bytes",
        ),
        (
            msgpack.packb({"format": 1, "tree": ["array", "float32", [2]], "leaves": [[b"abc"]]}),
            "8 bytes, got 3",
        ),
    ],
)
def test_foreign_and_damaged_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        from_bytes(data, like=mx.zeros(2))


def test_mismatches_are_listed_by_path():
    with pytest.raises(ValueError, match=r"w has shape \(2,\) in the file, \(3,\) in like"):
        from_bytes(to_bytes({"w": mx.zeros(2)}), like={"w": mx.zeros(3)})
    with pytest.raises(TypeError, match=r"^checkpoint.to_bytes: state\.w is the Python number"):
        to_bytes({"w": 1})
