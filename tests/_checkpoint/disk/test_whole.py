"""Directories that appear whole or not at all, whatever ends their writer."""

import errno
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import atomic, lock, tensors, whole
from purestep._checkpoint.disk.whole import write_directory
from purestep._checkpoint.exporting import companions, weights
from purestep.checkpoint import load_weights, save_weights
from tests._checkpoint.faults.interrupting import interrupted

PARAMS = {"a": mx.ones(40), "b": mx.ones(7)}
DEAD = 2**22 - 7  # no process has this number here


def two_files(directory):
    (directory / "a").write_text("a")
    (directory / "b").write_text("b")


def test_it_appears_with_all_of_its_files(tmp_path):
    def fill(directory):
        two_files(directory)
        assert not (tmp_path / "deep" / "out").exists()

    write_directory(tmp_path / "deep" / "out", fill)
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == ["a", "b"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_error_leaves_nothing_and_is_the_one_that_is_raised(tmp_path):
    def fail(directory):
        two_files(directory)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())


def test_what_was_filled_meanwhile_is_kept(tmp_path):
    def fill(directory):
        two_files(directory)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(OSError, match="out"):
        write_directory(tmp_path / "out", fill)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_directories_of_dead_writers_are_removed_and_those_of_others_are_kept(tmp_path):
    host = lock.host()
    alive = os.getppid()
    dead = f".out.{host}.{DEAD}.0a1b2c3d.tmp".removesuffix(".tmp") + "tmp"
    kept = {
        f".out.{host}.{alive}.0a1b2c3dtmp",
        f".out.elsewhere-{host}.{DEAD}.0a1b2c3dtmp",
        f".other.{host}.{DEAD}.0a1b2c3dtmp",
    }
    for name in [dead, *kept]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    write_directory(tmp_path / "out", two_files)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *kept}


KILLED = """
import os, signal, sys
import mlx.core as mx
from purestep._checkpoint.disk import atomic
from purestep.checkpoint import save_weights
flush, left = atomic.flush, [int(sys.argv[2])]
def counted(path):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)
atomic.flush = counted
save_weights(sys.argv[1], {"a": mx.ones(40), "b": mx.ones(7)}, config={"x": 1}, shard_bytes=160)
print("done")
"""


def test_a_kill_before_any_flush_leaves_nothing_or_all(tmp_path):
    out, count = tmp_path / "out", 0
    while True:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, out, str(count)], capture_output=True, text=True, check=False
        )
        if out.exists():
            found = load_weights(out, like=PARAMS)
            assert mx.array_equal(found["a"], PARAMS["a"])
            assert (out / "config.json").is_file()
            break
        assert done.returncode < 0
        count += 1
    assert count >= 5  # two shards, the index, the configuration, the directory
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupt_leaves_nothing_or_all_and_the_next_tidies_up(tmp_path, full):
    files = {module.__file__ for module in (atomic, companions, tensors, weights, whole)}
    position, stride = 1, 1 if full else 47
    while interrupted(lambda: save_weights(tmp_path / "out", PARAMS, config={}), position, files):
        if (tmp_path / "out").exists():
            load_weights(tmp_path / "out", like=PARAMS)
            (tmp_path / "out").rename(tmp_path / "moved")
        save_weights(tmp_path / "out", PARAMS)
        assert {path.name for path in tmp_path.iterdir()} <= {"out", "moved"}, f"at instruction {position}"
        for name in ("out", "moved"):
            for file in (tmp_path / name).glob("*"):
                file.unlink()
            if (tmp_path / name).exists():
                (tmp_path / name).rmdir()
        position += stride
    assert position > 500


def test_a_flush_that_fails_after_the_rename_says_that_all_is_written(tmp_path, monkeypatch):
    flush = atomic.flush

    def fail(path):
        if path == tmp_path and (tmp_path / "out").exists():
            raise OSError(errno.EIO, "Input/output error")
        flush(path)

    monkeypatch.setattr(atomic, "flush", fail)
    with pytest.raises(atomic.NotFlushedError, match=r"out is written and can be read, .*Input/output error"):
        save_weights(tmp_path / "out", PARAMS)
    monkeypatch.undo()
    assert mx.array_equal(load_weights(tmp_path / "out", like=PARAMS)["b"], PARAMS["b"])
