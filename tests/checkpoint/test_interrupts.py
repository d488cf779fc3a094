"""Ctrl-C at any instruction of taking or giving back a lock leaves the directory free."""

import gc
import sys

import mlx.core as mx
import pytest

from purestep.checkpoint import Checkpointer, LockedError, lock, manager, store

FILES = {module.__file__ for module in (lock, manager, store)}


def interrupted(use, position):
    """Run with an interrupt at the given instruction of the modules; tell whether it came so far."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == position:
                raise KeyboardInterrupt
        return trace

    before, hook = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = lambda _: None  # pytest's would keep the object whose finalizer was interrupted
    sys.settrace(trace)
    try:
        use()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        sys.unraisablehook = hook
    return passed >= position


@pytest.fixture
def stride(full):
    return 1 if full else 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of a file that is dropped open
def test_a_lock_that_was_interrupted_is_free_once_it_is_gone(tmp_path):
    def use():
        held = lock.Lock("test", tmp_path)
        held.check("test")
        held.release()

    def abandon():
        lock.Lock("test", tmp_path)

    for way in (use, abandon):
        position = 1
        while interrupted(way, position):
            try:
                lock.Lock("test", tmp_path).release()
            except LockedError:
                pytest.fail(f"locked after an interrupt at instruction {position}")
            position += 1
        assert position > 50
    with pytest.raises(LockedError, match=r"is being written by pid \d+"):
        (lock.Lock("test", tmp_path), lock.Lock("test", tmp_path))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_checkpointer_that_was_interrupted_leaves_the_directory_free(tmp_path, stride):
    value = {"w": mx.ones(1)}

    def use():
        checkpointer = Checkpointer(tmp_path, keep=lambda records: set())
        checkpointer.save(value, step=1)
        checkpointer.close()

    position = 1
    while interrupted(use, position):
        gc.collect()
        for _ in range(200):  # a job that was begun is finished first, by its thread
            try:
                with Checkpointer(tmp_path) as other:
                    other.delete(other.latest().step) if other.latest() else other.save(value, step=2)
                break
            except LockedError:
                gc.collect()
        else:
            pytest.fail(f"locked after an interrupt at instruction {position}")
        position += stride * 7
    assert position > 100
