"""One writer and any number of readers: threads, processes and forks in one directory."""

import os
import subprocess
import sys
import threading
import warnings
from unittest.mock import Mock

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.run import store, writer
from purestep.checkpoint import (
    Checkpointer,
    LockedError,
    keep_last,
)
from tests._checkpoint.states import VALUE


def test_readers_are_not_disturbed_by_a_writer_that_cleans_up(tmp_path):
    value, done = {"w": mx.zeros(1000)}, threading.Event()
    wrong = []

    def read():
        reader = Checkpointer(tmp_path)
        while not done.is_set():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    reader.restore(like=value)
                    reader.verify()
                    reader.latest()
            except Exception as error:
                wrong.append(error)

    with Checkpointer(tmp_path, keep=keep_last(1)) as checkpointer:
        checkpointer.save(value, step=0)
        checkpointer.wait()
        reader = threading.Thread(target=read)
        reader.start()
        for step in range(60):
            checkpointer.save(value, step=step // 2)  # every step twice
        checkpointer.wait()
        done.set()
        reader.join()
    assert wrong == []


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    code = (
        "import mlx.core as mx, sys; from purestep.checkpoint import Checkpointer\n"
        "c = Checkpointer(sys.argv[1]); c.save({'w': mx.ones(1)}, step=1); c.wait()\n"
        "print('ready', flush=True); sys.stdin.read(); c.close()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "ready\n"
    second = Checkpointer(tmp_path)
    with pytest.raises(
        LockedError, match=rf"^Checkpointer\.save: .*pid {first.pid} on {os.uname().nodename}: "
    ):
        second.save(VALUE, step=2)
    assert second.restore(like={"w": mx.zeros(1)}).record.step == 1  # reading is free
    with pytest.raises(LockedError):
        second.delete(1)
    first.communicate("")
    second.save(VALUE, step=2)
    second.close()
    with Checkpointer(tmp_path) as third, Checkpointer(tmp_path) as fourth:
        third.save(VALUE, step=3)
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            fourth.save(VALUE, step=4)


def test_a_forked_child_neither_keeps_the_lock_nor_hangs(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    go, told = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        child = os.fork()
    if not child:
        try:
            checkpointer.close()
            try:
                checkpointer.save(VALUE, step=9)
            except ValueError as error:
                os.write(told[1], str(error).encode())
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        assert b"belongs to the process that made it" in os.read(told[0], 1000)
        checkpointer.save(VALUE, step=2)
        checkpointer.close()
        with Checkpointer(tmp_path) as second:
            second.save(VALUE, step=3)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)


def test_a_lock_file_that_was_removed_is_noticed(checkpointer):
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    (checkpointer.path / ".lock").unlink()
    checkpointer.save(VALUE, step=2)
    with pytest.raises(LockedError, match=r"Checkpointer\.save: .*\.lock .*removed or replaced"):
        checkpointer.wait()


def test_an_interrupted_close_lets_nobody_in_before_the_writer_is_done(tmp_path, monkeypatch):
    go, write = threading.Event(), tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    checkpointer = Checkpointer(tmp_path)
    before = set(threading.enumerate())
    checkpointer.save(VALUE, step=1)
    [thread] = set(threading.enumerate()) - before
    with monkeypatch.context() as patched:
        patched.setattr(writer.Writer, "wait", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpointer.close()
    with Checkpointer(tmp_path) as second:
        with pytest.raises(LockedError):
            second.save(VALUE, step=2)
        go.set()
        thread.join(30)
        second.save(VALUE, step=2)
        assert [record.step for record in second.list()] == [1, 2]


def test_temporaries_of_the_dead_are_cleaned_and_those_of_others_are_not(tmp_path):
    host = store.lock.host()
    dead, foreign = f".step_00000009.{host}.999999.abcdef01tmp", ".step_00000009.elsewhere.7.abcdef01tmp"
    for name in (dead, foreign, ".mine"):
        (tmp_path / name).mkdir()
    assert Checkpointer(tmp_path).list() == []  # a reader touches nothing
    assert {dead, foreign} <= {entry.name for entry in tmp_path.iterdir()}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(VALUE, step=3)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", ".mine", foreign, "step_00000003"}
