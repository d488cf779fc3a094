"""The check that `mx.compile` compiles: a new kernel is built in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from purestep._hardware.machine import backend
from purestep.cli.doctoring.finding import OK, WRONG, Finding

_SECONDS = 60.0
_INSTALL = "Install the C++ compiler g++ (apt-get install g++ on Debian and Ubuntu)"
_TRY = "See that g++ compiles a small program and that programs may run from TMPDIR"
# It gets an empty directory for kernels, since a kernel in the usual one may be older than the fault. It is a
# process of its own, since MLX may end it.
_PROGRAM = """
import json, sys, time
import mlx.core as mx
if sys.argv[1] == "cpu":
    mx.set_default_device(mx.cpu)
calls = 0
def function(x):
    global calls
    calls += 1
    return mx.exp(-x * x) * 0.25 + mx.sigmoid(x) / 3
x = mx.arange(64, dtype=mx.float32) / 32 - 1
want = function(x)
mx.eval(want)
calls = 0
compiled = mx.compile(function)
began = time.perf_counter()
got = compiled(x)
mx.eval(got)
seconds = time.perf_counter() - began
mx.eval(compiled(x + 1))
print(json.dumps({"calls": calls, "seconds": seconds, "error": mx.abs(got - want).max().item()}))
"""


def compilation() -> Finding:
    """Build a fused kernel and compare its values with those of the uncompiled function."""
    compiler = shutil.which("g++")
    cpu = backend() == "cpu" and sys.platform == "linux"
    figures: dict[str, Any] = {"g++": compiler, "compiler_is_needed": cpu}
    place = os.environ.get("TMPDIR") or "/tmp"
    try:
        directory = tempfile.mkdtemp(prefix="purestep-doctor-", dir=place)
    except OSError as error:
        said = f"the directory for temporary files, {place}, cannot be written: {error.strerror}"
        return Finding(
            "compile", WRONG, said, "Set TMPDIR to a directory that exists and can be written", figures
        )
    try:
        return _judged(_ran(directory), cpu, figures, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _ran(directory: str) -> dict[str, Any]:
    """Run the program; return what it measured, or `{"failed": why}`."""
    kind = "cpu" if backend() == "cpu" else "gpu"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, kind],
            env={**os.environ, "TMPDIR": directory},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {_SECONDS:.0f} s"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"the process ended with status {done.returncode}"}


def _judged(result: dict[str, Any], cpu: bool, figures: dict[str, Any], directory: str) -> Finding:
    figures = {**figures, **result}
    if "failed" in result:
        said = f"a fused kernel could not be built: {result['failed']}"
        if cpu and figures["g++"] is None:
            return Finding("compile", WRONG, said, _INSTALL, figures)
        remedy = _TRY if cpu else "See that the GPU driver and the toolkit fit the version of MLX"
        return Finding("compile", WRONG, said, f"{remedy}; train --no-compile-step needs no kernel", figures)
    kernels = [path for path in Path(directory).rglob("*") if path.suffix in (".so", ".dylib")]
    if result["calls"] != 1 or (cpu and not kernels):
        said = "mx.compile does not compile here: every call runs the Python function"
        return Finding("compile", WRONG, said, _cause(cpu, figures["g++"]), figures)
    if not result["error"] <= 1e-5:
        said = f"a fused kernel gives other values: they differ by {result['error']:.2g}"
        return Finding(
            "compile", WRONG, said, "Report it to MLX; MLX_DISABLE_COMPILE=1 avoids kernels", figures
        )
    by = f" by {figures['g++']}" if cpu else ""
    said = f"a fused kernel was built{by} in {result['seconds']:.1f} s and gives the right values"
    return Finding("compile", OK, said, figures=figures)


def _cause(cpu: bool, compiler: str | None) -> str:
    if "MLX_DISABLE_COMPILE" in os.environ:
        return "Unset the environment variable MLX_DISABLE_COMPILE"
    if cpu and compiler is None:
        return _INSTALL
    return _TRY if cpu else "Report it to MLX, with the versions above"
