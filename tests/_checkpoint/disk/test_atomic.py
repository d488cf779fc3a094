"""One file replaces another whole, or not at all."""

import errno
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import atomic, lock
from purestep.checkpoint import load, save
from tests._checkpoint.damage import raising


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path / "s.safetensors", {"w": mx.ones(3)})
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "s.safetensors", {"w": mx.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]
    assert load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})["w"].tolist() == [1.0, 1.0, 1.0]


def test_data_and_directory_are_flushed_around_the_rename(tmp_path, monkeypatch):
    order = []
    flush, replace = atomic.flush, type(tmp_path).replace
    monkeypatch.setattr(atomic, "flush", lambda path: order.append(("flush", path.is_dir())) or flush(path))
    monkeypatch.setattr(
        type(tmp_path),
        "replace",
        lambda self, target: order.append(("rename", target.name)) or replace(self, target),
    )
    save(tmp_path / "s", {"w": mx.ones(3)})
    assert order[-3:] == [("flush", False), ("rename", "s"), ("flush", True)]


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="/file/"):
        save(tmp_path / "file" / "s.safetensors", {"w": mx.ones(3)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"^checkpoint\.save: path .*directory .*/folder$"):
        save(tmp_path / "folder", {"w": mx.ones(3)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


KILLED = """
import os, sys
import mlx.core as mx
from purestep._checkpoint.disk import atomic
from purestep.checkpoint import save
atomic.flush = lambda path: os.kill(os.getpid(), 9)
save(sys.argv[1] + "/s.safetensors", {"w": mx.ones(3)})
"""


def test_temporaries_of_dead_writers_are_removed_and_no_others(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    host = lock.host()
    others = [
        f".s.safetensors.{host}.{os.getppid()}.0a1b2c3d.tmp.safetensors",  # alive
        f".s.safetensors.{host}x.999999999.0a1b2c3d.tmp.safetensors",  # of another host
        f".t.safetensors.{host}.999999999.0a1b2c3d.tmp.safetensors",  # of another file
        ".s.safetensors.notes.tmp",
    ]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f".s.safetensors.{host}.999999999.0a1b2c3d.tmp").touch()
    save(tmp_path / "s.safetensors", {"w": mx.ones(3)})
    assert {entry.name for entry in tmp_path.iterdir()} == {"s.safetensors", *others}


def test_files_get_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "s", {"w": mx.ones(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o640
