"""Run every operation once for each call of the system and each fault, with `faults.c` preloaded.

    LD_PRELOAD=faults.so python -m tests._checkpoint.syscalls.sweep

Each case is a forked process of its own: this one never computes, so
that there is no thread to lose. The last line on stdout is JSON: what was injected and what went wrong.
"""

import argparse
import contextlib
import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests._checkpoint.syscalls.bundles import BUNDLES
from tests._checkpoint.syscalls.checkpoints import CHECKPOINTS
from tests._checkpoint.syscalls.files import FILES
from tests._checkpoint.syscalls.operations import Outcome, complaints_of, resources

SHORT, KILL, EVER = -1, -2, 1 << 30
# A name, what the call answers, and for how many calls from there.
FAULTS = {
    "EIO": (errno.EIO, 1),
    "ENOSPC": (errno.ENOSPC, 1),
    "EMFILE": (errno.EMFILE, 1),
    "EACCES": (errno.EACCES, 1),
    "EINTR": (errno.EINTR, 1),
    "short": (SHORT, 1),  # half of what was to be read or written
    "killed": (KILL, 1),  # a last write is half done
    "EIO from here on": (errno.EIO, EVER),
}
LIMIT = 30  # seconds for a case

library = ctypes.CDLL(None)
library.faults_calls.restype = ctypes.c_char_p


def forked(work):
    """Return what `work(say)` returns as JSON in a process of its own, what it said, and how it ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            signal.alarm(LIMIT)
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            result = work(lambda text: os.write(writing, (json.dumps(text) + "\n").encode()))
            os.write(writing, (json.dumps({"result": result}) + "\n").encode())
            status = 0
        except BaseException:
            os.write(writing, (json.dumps({"failed": traceback.format_exc()}) + "\n").encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as lines:
        said = [json.loads(line) for line in lines]
    _, status = os.waitpid(pid, 0)
    return said, os.waitstatus_to_exitcode(status)


class Armed:
    """The block in which calls fail; may be entered once."""

    def __init__(self, directory, first, fault, length):
        self.plan = (os.fsencode(directory), first, min(first + length - 1, EVER), fault)
        self.count, self.hits, self.calls = 0, 0, ""

    def __enter__(self):
        library.faults_arm(*self.plan)

    def __exit__(self, *_):
        library.faults_disarm()
        self.count, self.hits = library.faults_count(), library.faults_hits()
        self.calls = library.faults_calls().decode()


def case(operation, template, directory, first, fault, length):
    """Run one case; return the calls that were made, how often it failed, and complaints."""
    shutil.copytree(template, directory)

    def work(say):
        armed = Armed(directory, first, fault, length)
        before = resources()
        value = error = None
        said = []
        try:
            value = operation.act(directory, armed, lambda text: (said.append(text), say(text)))
        except Exception as caught:
            error = caught
        complaints = []
        if first and error is not None:
            complaints += complaints_of(error, directory)
            number = getattr(error, "errno", None)
            if number is not None and number != fault:
                complaints.append(f"!has errno {number}: {error}")
        checked = Outcome(said, error, value, False)
        with contextlib.suppress(StopIteration):
            complaints += list(operation.check(directory, checked))
        value = error = checked = None
        for wait in (0, 0.01, 0.1, 1):  # MLX's threads close what they have read a moment later
            time.sleep(wait)
            after = resources()
            if after[0] <= before[0] and not after[1] - before[1]:
                break
        if after[0] > before[0]:
            complaints.append(f"{after[0] - before[0]} descriptors are left open")
        if after[1] - before[1]:
            complaints.append(f"threads {after[1] - before[1]} are left")
        return [armed.calls, armed.hits, complaints]

    try:
        said, status = forked(work)
        if status == -signal.SIGKILL and fault == KILL:
            outcome = Outcome([text for text in said if isinstance(text, str)], None, None, True)
            said, status = forked(lambda _: ["", 1, list(operation.check(directory, outcome))])
        if status:
            return "", 1, [f"ended with {status}: {str(said[-1:])[-700:]}"]
        return said[-1]["result"]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main():
    """Sweep, wholly or in part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take one case in so many")
    parser.add_argument("--part", type=int, default=0, help="which of them")
    parser.add_argument("--only", default="", help="the operation to run")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where nothing waits for a disk
    root = Path(os.path.realpath(tempfile.mkdtemp(dir=memory)))
    gc.freeze()  # what is here already is no part of any case
    positions, injected, wrong, misreported, number = 0, Counter(), [], [], 0
    for name, operation in (FILES | CHECKPOINTS | BUNDLES).items():
        if options.only and name != options.only:
            continue
        template = root / "template"
        template.mkdir()
        said, status = forked(lambda _, operation=operation, template=template: operation.prepare(template))
        assert status == 0, f"{name}: {said}"
        calls, _, complaints = case(operation, template, root / "case", 0, 0, 1)
        assert not complaints, f"{name}, without a fault: {complaints}"
        calls = calls.split()
        positions += len(calls)
        for position in range(1, len(calls) + 1):
            for fault, (answer, length) in FAULTS.items():
                divisible = calls[position - 1] in ("read", "write", "pread", "pwrite")
                if fault == "short" and not divisible:
                    continue
                number += 1
                if number % options.every != options.part:
                    continue
                _, hits, complaints = case(operation, template, root / "case", position, answer, length)
                injected[fault] += bool(hits)
                for complaint in complaints:
                    shown = f"{name}, {fault} at call {position} ({calls[position - 1]})"
                    found = misreported if complaint.startswith("!") else wrong
                    found.append(f"{shown}: {complaint.lstrip('!')}")
        shutil.rmtree(template)
    shutil.rmtree(root)
    report = {"positions": positions, "injected": injected, "wrong": wrong, "misreported": misreported}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
