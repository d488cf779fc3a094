"""Killed, corrupted, out of space: nothing is lost, and nothing wrong is ever returned.

`pytest tests/_checkpoint/faults/test_faults.py --full` runs 200 kills, some minutes.
"""

import random
import shutil
import subprocess
import sys
import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep.checkpoint import (
    Checkpointer,
    CorruptError,
    CorruptWarning,
    keep_last,
)
from tests.trees import same_bits

TRANSFORM = ps.optimizers.adam(0.01)
WIDTH = 200  # three arrays of 160 kB: a save takes a few milliseconds, most of them in the kernel


def loss_fn(params, batch, rng):
    noise = mx.random.normal(batch.shape, key=rng)
    return mx.square(params["w"] @ (batch + noise)).mean()


def train(state, steps):
    """Yield the states of a run that has no memory but its state."""
    step = ps.train_step(loss_fn, TRANSFORM)
    for number in range(int(state.step.item()), steps):
        state, _ = step(state, mx.full((WIDTH,), float(number % 7)))
        mx.eval(state)
        yield state


def start():
    return ps.TrainState.create({"w": mx.eye(WIDTH)}, TRANSFORM, seed=5)


RUN = """
import sys
from purestep.checkpoint import Checkpointer, keep_last
from tests._checkpoint.faults import test_faults as faults
with Checkpointer(sys.argv[1], keep=keep_last(2)) as checkpointer:
    state = checkpointer.restore(like=faults.start()).state if checkpointer.list() else faults.start()
    for number, state in enumerate(faults.train(state, int(sys.argv[2]))):
        if number == 0:
            print("running", flush=True)  # kernels are built, which may take seconds
        checkpointer.save(state)
        checkpointer.save(state)  # again: it must not be lost while it is replaced
"""


def test_a_run_killed_at_any_moment_goes_on_with_the_same_bits(tmp_path, full):
    kills, steps = (200, 4000) if full else (6, 150)
    draw = random.Random(0)
    command = [sys.executable, "-c", RUN, tmp_path, str(steps)]
    expected, ahead = start(), train(start(), steps)
    for number in range(kills):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "running\n", child.stderr.read()
        # Somewhere in the first saves after the start; later kills only repeat them.
        try:
            child.wait(draw.uniform(0, 0.15) if number else 0.3)
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()
        if not list(tmp_path.glob("step_*")):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", CorruptWarning)  # the newest must be intact, not merely some
            state, record = Checkpointer(tmp_path).restore(like=start())
        while expected.step.item() < record.step:
            expected = next(ahead)
        assert same_bits(state, expected), f"after kill {number}, step {record.step}"
        if record.step == steps:
            break
    assert record.step > 3


STATE = {
    "params": {"layers": [{"w": mx.arange(300.0).reshape(15, 20), "b": mx.ones(40, mx.bfloat16)}]},
    "opt_state": ({"mu": mx.arange(300.0).reshape(15, 20)}, None, {}),
    "step": mx.array(7),
}


def test_swapped_files_are_detected(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save({"params": {"w": mx.full(50, float(step))}, "s": mx.array(step)}, step=step)
    one, two = tmp_path / "step_00000001", tmp_path / "step_00000002"
    for name in ("model.safetensors", "state.safetensors", "manifest.json"):
        intact = (two / name).read_bytes()
        shutil.copy(one / name, two / name)
        with pytest.raises(CorruptError):
            checkpointer.restore(2)
        with pytest.warns(CorruptWarning, match="used step 1"):
            assert checkpointer.restore().record.step == 1
        (two / name).write_bytes(intact)
    checkpointer.restore(2)


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
        subprocess.run(["umount", disk], check=True)


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
        with pytest.raises(
            OSError, match=r"Checkpointer\.save: .*cannot be written \(Read-only file system\)"
        ):
            reader.save(STATE, step=2)
    finally:
        subprocess.run(["umount", disk], check=True)
