"""Every call of the system that storage makes fails once, in Python and in MLX: nothing is wrong after it.

`pytest tests/_checkpoint/syscalls/test_syscalls.py --full` runs all positions with all faults, which
takes some twenty minutes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    """Return an environment in which the calls of the system can be made to fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("calls of the system are replaced as on Linux, by a library built with a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"],
        check=True,
    )
    paths = [entry for entry in (os.fspath(ROOT), os.environ.get("PYTHONPATH", "")) if entry]
    return {**os.environ, "LD_PRELOAD": os.fspath(library), "PYTHONPATH": os.pathsep.join(paths)}


def sweep(environment, *options):
    command = [sys.executable, "-m", "tests._checkpoint.syscalls.sweep", *map(str, options)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_nothing_is_wrong_or_misreported_whatever_call_fails(preloaded, full):
    # The stride shares no factor with the number of faults, so that all of them come up everywhere.
    workers = [sweep(preloaded, "--every", 2, "--part", part) for part in (0, 1)] if full else []
    workers = workers or [sweep(preloaded, "--every", 211, "--part", 3)]
    injected = 0
    for worker in workers:
        told = worker.communicate()[0]
        assert worker.returncode == 0
        report = json.loads(told.splitlines()[-1])
        assert report["positions"] > 2000
        assert not report["wrong"], "\n".join(report["wrong"])
        assert not report["misreported"], "\n".join(report["misreported"])
        injected += sum(report["injected"].values())
        print(report["positions"], "positions,", report["injected"])
    assert injected > (12_000 if full else 60)
