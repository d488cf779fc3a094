"""What every benchmark shares: processes that take turns, statistics of pairs, facts, a table."""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

_SETTLE = 0.05  # seconds between turns: OpenBLAS threads spin for up to some 30 ms after their last product


class ContestantError(Exception):
    """A contestant failed, died or disagrees; nothing that was measured counts."""


class Worker:
    """An object in a process of its own: `build(*args)` runs there, and so does every method called.

    When `cold`, it gets an empty TMPDIR, where MLX keeps the kernels it has built (g++ on a CPU, NVRTC
    on CUDA): it builds its own, and its first call pays for them. Metal caches elsewhere.

    Float32 products are made in float32: under TF32, CUDA's default, equal mathematics in another order
    is 4e-3 apart, and no comparison could be sharp. MLX_ENABLE_TF32=1 in the environment overrides.
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., Any],
        *args: Any,
        cold: bool = False,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="purestep-benchmark-")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, args), daemon=True)
        before = dict(os.environ)
        wanted = {"MLX_ENABLE_TF32": before.get("MLX_ENABLE_TF32", "0"), **(environment or {})}
        if cold:
            wanted["TMPDIR"] = self._folder.name
        os.environ.update(wanted)  # what a spawned process starts with
        try:
            self._process.start()
        finally:
            for variable in wanted:
                os.environ.pop(variable)
            os.environ.update(before)
        theirs.close()

    def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Call a method of the object there and wait for what it returns, for at most `timeout` seconds."""
        try:
            self._pipe.send((method, args))
            if not self._pipe.poll(timeout):
                self._process.kill()
                raise ContestantError(f"{self.name}: {method} took more than {timeout:.0f} s")
            failed, result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise ContestantError(
                f"{self.name}: its process died, exit code {self._process.exitcode}"
            ) from None
        if failed:
            raise ContestantError(f"{self.name}: {method} raised\n{result}")
        return result

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its folder."""
        self._pipe.close()  # the other end reads the end of the file, and returns
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, build: Callable[..., Any], args: tuple[Any, ...]) -> None:
    built: Any = None
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent is done, or gone
        while True:
            method, given = pipe.recv()
            try:
                built = build(*args) if built is None else built
                answer = (False, getattr(built, method)(*given))
            except Exception:
                answer = (True, traceback.format_exc())
            pipe.send(answer)


@contextmanager
def workers(
    build: Callable[..., Any], contestants: Mapping[str, tuple[Any, ...]], *, cold: bool
) -> Iterator[list[Worker]]:
    """Keep one process for each contestant alive, `build(*contestants[name])` in it."""
    with ExitStack() as stack:
        started = (Worker(name, build, *args, cold=cold) for name, args in contestants.items())
        yield [stack.enter_context(worker) for worker in started]


def race(contestants: Sequence[Worker], *, steps: int, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Let each contestant run `steps` steps a round, one at a time, in an order shuffled anew each round.

    Returns:
        For each name its seconds a step, round by round: values of one index were measured side by side.
    """
    shuffled, order = random.Random(seed), list(contestants)
    seconds: dict[str, list[float]] = {worker.name: [] for worker in contestants}
    for index in range(rounds):
        note(f"round {index + 1} of {rounds}", passing=True)
        shuffled.shuffle(order)
        for worker in order:
            time.sleep(_SETTLE)
            seconds[worker.name].append(worker.call("seconds", steps) / steps)
    return seconds


class Spread(NamedTuple):
    """The median and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, values: Sequence[float], base: Sequence[float]) -> "Spread":
        """Summarize the ratios of values that were measured side by side."""
        return cls.of([a / b for a, b in zip(values, base, strict=True)])

    def show(self, digits: int = 2, scale: float = 1.0) -> str:
        """Write `median (low-high)`."""
        median, low, high = (f"{scale * x:.{digits}f}" for x in self)
        return f"{median} ({low}-{high})"


def fastest(values: Sequence[float]) -> float:
    """Return the mean of the smallest tenth: what is left when other work on the machine pauses."""
    count = max(1, len(values) // 10)
    return statistics.fmean(sorted(values)[:count])


def facts() -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    import purestep as ps  # not above: a process of another framework must not load MLX
    from purestep._core import hardware

    return {
        "device": hardware.device_name(),
        "blas": hardware.blas(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "mlx": importlib.metadata.version("mlx"),
        "purestep": ps.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }


def facts_lines(known: Mapping[str, Any]) -> str:
    """Write the facts in lines of at most 100 columns."""
    return textwrap.fill(", ".join(f"{name} {value}" for name, value in known.items()), 100)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [head, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def note(text: str, *, passing: bool = False) -> None:
    """Say on standard error what goes on; a passing note only to a terminal, and overwritten."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """Read a command-line count of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def save(name: str, found: Mapping[str, Any], text: str) -> None:
    """Write what was measured to `benchmarks/results`, as JSON and as text, named after the device."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(found["facts"]["device"]).lower()).strip("-")
    (folder / f"{name}-{device}.json").write_text(json.dumps({"benchmark": name, **found}, indent=1) + "\n")
    (folder / f"{name}-{device}.txt").write_text(text + "\n")
