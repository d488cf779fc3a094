"""Copies and places, which only CUDA needs, on any device: told to, the code makes them."""

import gc

import mlx.core as mx
import pytest

from purestep import tree
from purestep._checkpoint.disk import device
from purestep.checkpoint import Checkpointer, from_bytes, load, save, to_bytes
from tests.trees import same_bits

NANS = mx.array([0x7FC12345, 0xFF800001, 0x80000000], mx.uint32).view(mx.float32)
STATE = {
    "w": mx.arange(6.0).reshape(2, 3).T,  # not contiguous
    "nan": NANS,
    "half": mx.array([1.5, float("nan")], mx.bfloat16),
    "complex": mx.array([1 + 2j, -0j]),
    "key": mx.random.key(7),
    "flag": mx.array(True),
    "empty": mx.zeros((0, 3), mx.int8),
    "large": mx.array([1, 2], mx.uint64) << 62,
}


@pytest.fixture
def pretend(monkeypatch):
    """Take the way of CUDA, and note the memory in use whenever MLX's own is given back."""
    seen = []
    monkeypatch.setattr(device, "on_cuda", lambda: True)
    monkeypatch.setattr(device, "trim", lambda: seen.append(mx.get_active_memory()))
    return seen


def test_a_copy_has_the_same_bits_and_memory_of_its_own():
    for path, array in tree.items(STATE):
        copy = device.copied(array)
        mx.eval(copy)
        assert same_bits(copy, array), path
    source = mx.ones(1000)
    before = mx.get_active_memory()
    copy = device.copied(source)
    mx.eval(copy)
    assert mx.get_active_memory() >= before + source.nbytes


def test_every_way_of_storing_gives_the_same_bits(tmp_path, pretend):
    save(tmp_path / "file", STATE)
    assert same_bits(load(tmp_path / "file", like=STATE), STATE)
    assert same_bits(load(tmp_path / "file"), STATE)
    assert same_bits(from_bytes(to_bytes(STATE), like=STATE), STATE)
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.save(STATE, step=2)
    assert same_bits(Checkpointer(tmp_path / "run").restore(like=STATE).state, STATE)


@pytest.mark.skipif(mx.cuda.is_available(), reason="gives memory back a little later")
def test_what_the_host_read_is_dropped_before_memory_is_given_back(tmp_path, pretend):
    state = {"a": mx.ones(250_000), "b": mx.ones((500, 500))}
    mx.eval(state)
    gc.collect()
    held = mx.get_active_memory()
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(state, step=1)
    save(tmp_path / "file", state)
    data = to_bytes(state)
    assert len(pretend) == 3
    assert all(memory < held + 500_000 for memory in pretend), "copies were still held"
    for restore in (
        lambda: Checkpointer(tmp_path / "run").restore(like=state).state,
        lambda: load(tmp_path / "file", like=state),
        lambda: from_bytes(data, like=state),
    ):
        del pretend[:]
        restored = restore()
        assert len(pretend) == 1
        assert pretend[0] < held + 2_500_000, "what was read was still held beside what is returned"
        del restored


@pytest.mark.skipif(not device.on_cuda(), reason="needs CUDA")
def test_a_double_is_stored_from_cuda_too():
    with mx.stream(mx.cpu):
        value = {"w": mx.array([0.1, 2], dtype=mx.float64)}
        mx.eval(value)
    assert same_bits(from_bytes(to_bytes(value)), value)
