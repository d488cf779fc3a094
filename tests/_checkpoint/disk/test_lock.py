"""The lock of a directory is free again, also while a child that is being started has its file open."""

import errno
import gc
import os

import pytest

from purestep._checkpoint.disk import lock


def shared_with_a_child(held):
    """Return a descriptor of the lock's file as a child has it between its fork and its program."""
    return os.dup(held._file.fileno())


@pytest.mark.parametrize("how", ["released", "deleted"])
def test_a_lock_that_a_child_shares_is_free_again(tmp_path, how):
    held = lock.Lock("test", tmp_path)
    shared = shared_with_a_child(held)
    if how == "released":
        held.release()
    del held
    gc.collect()
    lock.Lock("test", tmp_path).release()
    os.close(shared)


def test_a_lock_that_could_not_be_written_is_free_again(tmp_path, monkeypatch):
    shared = []

    def full(*args):
        (held,) = [each for each in lock._HELD if each._path.parent == tmp_path]
        shared.append(shared_with_a_child(held))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lock.json, "dumps", full)
        with pytest.raises(OSError, match="No space left"):
            lock.Lock("test", tmp_path)
    lock.Lock("test", tmp_path).release()
    os.close(*shared)


def test_a_lock_that_is_held_is_refused(tmp_path):
    held = lock.Lock("test", tmp_path)
    with pytest.raises(lock.LockedError, match=f"pid {os.getpid()} on "):
        lock.Lock("test", tmp_path)
    with pytest.raises(lock.LockedError):  # the refused lock did not unlock it
        lock.Lock("test", tmp_path)
    held.release()
