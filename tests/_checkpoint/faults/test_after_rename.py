"""After its rename a checkpoint is there: a failure then does not say that it was not saved."""

import errno
from pathlib import Path

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.run import directory, store
from purestep.checkpoint import Checkpointer, keep_last, load, save
from tests._checkpoint.damage import raising

ONES, TWOS = {"w": mx.ones(3)}, {"w": mx.full(3, 2.0)}


@pytest.fixture
def unflushed(tmp_path, monkeypatch):
    """Fail the flushing of the directory that holds what was renamed, while the list has entries."""
    failing, flush = [], atomic.flush

    def fail(path):
        if failing and Path(path) == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        flush(path)

    monkeypatch.setattr(atomic, "flush", fail)
    return failing


def test_a_file_that_is_in_its_place_is_said_to_be(tmp_path, unflushed):
    file = tmp_path / "s.safetensors"
    save(file, ONES)
    unflushed.append(1)
    with pytest.raises(OSError, match=r"s\.safetensors is written .*directory .*Input/output error") as error:
        save(file, TWOS)
    assert error.value.errno == errno.EIO
    assert load(file)["w"].tolist() == [2.0] * 3


def test_a_divided_state_without_its_index_is_not_written(tmp_path, unflushed):
    unflushed.append(1)
    with pytest.raises(OSError, match=r"s\.safetensors\.index\.json was not written"):
        save(tmp_path / "s.safetensors", {"a": mx.ones(8), "b": mx.ones(8)}, shard_bytes=32)
    unflushed.clear()
    save(tmp_path / "s.safetensors", {"a": mx.ones(8), "b": mx.ones(8)}, shard_bytes=32)


def test_a_checkpoint_that_is_in_its_place_counts_and_removes_no_older_one(tmp_path, unflushed):
    checkpointer = Checkpointer(tmp_path, keep=keep_last(1), asynchronous=False)
    checkpointer.save(ONES, step=1)
    unflushed.append(1)
    with pytest.raises(
        OSError, match=r"^\[Errno 5\] Checkpointer: step 2 is saved: .*step_00000002 .*flushed"
    ):
        checkpointer.save(TWOS, step=2)
    assert [record.step for record in checkpointer.list()] == [1, 2]
    assert checkpointer.restore().record.step == 2
    unflushed.clear()
    checkpointer.save(ONES, step=3)  # retention knows the copy
    assert [record.step for record in checkpointer.list()] == [3]
    checkpointer.close()


@pytest.mark.parametrize(
    ("home", "name", "error"),
    [
        (directory, "read", OSError(errno.EMFILE, "Too many")),
        (store, "remove", PermissionError(errno.EACCES, "no")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_back_or_cleaned_up_after_is_saved(
    home, name, error, tmp_path, monkeypatch
):
    checkpointer = Checkpointer(tmp_path, keep=keep_last(1), asynchronous=False)
    checkpointer.save(ONES, step=1)
    with monkeypatch.context() as patched:
        patched.setattr(home, name, raising(error))
        with pytest.raises(OSError, match=f"step 2 is saved, .*clean.*: {error.strerror}$"):
            checkpointer.save(TWOS, step=2)
    assert checkpointer.restore().record.step == 2
    checkpointer.save(TWOS, step=3)
    assert [record.step for record in checkpointer.list()] == [3]
    checkpointer.close()


def test_a_checkpoint_that_is_deleted_is_said_to_be_where_its_files_remain(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, asynchronous=False) as checkpointer:
        checkpointer.save(ONES, step=1)
        checkpointer.save(TWOS, step=2)
        with monkeypatch.context() as patched:
            patched.setattr(store.shutil, "rmtree", raising(OSError(errno.EIO, "I/O")))
            with pytest.raises(OSError, match=r"step_00000001 is deleted, .*files .*/\.step_00000001"):
                checkpointer.delete(1)
        assert [record.step for record in checkpointer.list()] == [2]
        assert list(tmp_path.glob(".step_*tmp"))
        checkpointer.save(ONES, step=3)
    assert not list(tmp_path.glob(".step_*tmp"))


def test_a_temporary_that_could_not_be_removed_is_removed_by_the_next_save(tmp_path, monkeypatch):
    file, replace = tmp_path / "s.safetensors", Path.replace

    fail = raising(OSError(errno.EIO, "Input/output error"))
    for patched in (file, tmp_path / "d.safetensors"):
        with monkeypatch.context() as broken:
            broken.setattr(Path, "replace", fail)
            broken.setattr(Path, "unlink", fail)
            with pytest.raises(OSError, match="Input/output error"):
                save(patched, {"a": mx.ones(8), "b": mx.ones(8)}, shard_bytes=32 if patched != file else None)
    assert len(list(tmp_path.glob(".*tmp*"))) == 2
    assert Path.replace is replace
    save(file, ONES)
    save(tmp_path / "d.safetensors", ONES)  # one file now: what is left has another name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.safetensors", "s.safetensors"]


@pytest.mark.parametrize("failing", ["fsync", "close"])
def test_errors_of_the_system_name_the_file_and_keep_their_number(tmp_path, monkeypatch, failing):
    real = getattr(atomic.os, failing)

    def fail(descriptor):
        if failing == "close":
            real(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpointer = Checkpointer(tmp_path / "run", asynchronous=False)
    checkpointer.save(ONES, step=1)
    for use, said in (
        (lambda: save(tmp_path / "s.safetensors", ONES), str(tmp_path)),
        (
            lambda: checkpointer.save(ONES, step=2),
            "step 2 was not saved: No space left.*" + str(tmp_path),
        ),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(atomic.os, failing, fail)
            with pytest.raises(OSError, match=said) as error:
                use()
        assert error.value.errno == errno.ENOSPC
    save(tmp_path / "s.safetensors", ONES)
    checkpointer.save(ONES, step=3)
    checkpointer.close()
    assert not list(tmp_path.rglob(".*tmp*"))


def test_the_parents_that_a_save_makes_are_on_the_disk(tmp_path, monkeypatch):
    flushed, flush = [], atomic.flush
    monkeypatch.setattr(atomic, "flush", lambda path: (flushed.append(Path(path)), flush(path)))
    save(tmp_path / "a" / "b" / "s.safetensors", ONES)
    assert flushed[:2] == [tmp_path, tmp_path / "a"]
    assert flushed[-1] == tmp_path / "a" / "b"
