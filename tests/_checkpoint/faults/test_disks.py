"""Disks that are full, limited or read-only: earlier checkpoints stay intact."""

import subprocess
import sys
import time

import pytest

from purestep.checkpoint import (
    Checkpointer,
    keep_last,
    save_weights,
)
from tests._checkpoint.states import STATE
from tests.trees import same_bits

FILL = """
import resource, signal, sys
import mlx.core as mx
from purestep.checkpoint import Checkpointer, save
if sys.argv[2]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
small, large = {"w": mx.ones(1000)}, {"w": mx.ones(4_000_000)}
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(small, step=1)
    checkpointer.save(large, step=2)
    try:
        checkpointer.wait()
    except OSError as error:
        print(error)
    checkpointer.save(small, step=3)
try:
    save(sys.argv[1] + "/large.safetensors", large)
except OSError as error:
    print(error)
"""


def unmount(disk):
    """Unmount a file system; a program that reads every new file may hold it."""
    for _ in range(50):
        if subprocess.run(["umount", disk], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", disk], check=True)


def check_out_of_space(directory, limit):
    done = subprocess.run(
        [sys.executable, "-c", FILL, directory, limit], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("Checkpointer: step 2 was not saved: cannot write 16000000 bytes to ")
    assert "bytes are free there" in first
    assert first.endswith("earlier checkpoints are intact")
    assert second.startswith("cannot write 16000000 bytes to ")
    reader = Checkpointer(directory)
    assert [record.step for record in reader.list()] == [1, 3]
    assert reader.verify() == {1: [], 3: []}
    assert sorted(entry.name for entry in directory.iterdir()) == [".lock", "step_00000001", "step_00000003"]


def test_a_file_limit_leaves_earlier_checkpoints_intact(tmp_path):
    check_out_of_space(tmp_path, "5000000")


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        check_out_of_space(disk, "")
    finally:
        unmount(disk)


def test_a_read_only_disk_is_read_and_never_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        with Checkpointer(disk / "run", keep=keep_last(1)) as checkpointer:
            checkpointer.save(STATE, step=1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        reader = Checkpointer(disk / "run")
        assert same_bits(reader.restore(like=STATE).state, STATE)
        with pytest.raises(OSError, match=r"Checkpointer\.save: .*\.lock cannot .*\(Read-only file system\)"):
            reader.save(STATE, step=2)
        with pytest.raises(OSError, match=r"Read-only file system.*disk"):
            save_weights(disk / "out", STATE)
    finally:
        unmount(disk)
