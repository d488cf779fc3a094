"""A run that is killed at any moment: nothing is lost, and nothing wrong is ever returned.

`pytest tests/_checkpoint/faults/test_kills.py --full` runs 200 kills, some minutes.
"""

import random
import subprocess
import sys
import warnings

from purestep.checkpoint import (
    Checkpointer,
    CorruptWarning,
)
from tests._checkpoint.faults.killed import start, train
from tests.trees import same_bits

RUN = """
import sys
from purestep.checkpoint import Checkpointer, keep_last
from tests._checkpoint.faults import killed
with Checkpointer(sys.argv[1], keep=keep_last(2)) as checkpointer:
    state = checkpointer.restore(like=killed.start()).state if checkpointer.list() else killed.start()
    for number, state in enumerate(killed.train(state, int(sys.argv[2]))):
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
