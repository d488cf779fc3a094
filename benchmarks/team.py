"""Contestants of several frameworks that may be absent, fail or disagree while the others go on."""

import importlib.util
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.harness import ContestantError, Spread, Worker

_SETTLE = 0.05  # seconds between turns, as in `harness.race`
_PATIENCE = 300.0  # seconds for one call


class Contestant(NamedTuple):
    """Who competes.

    Attributes:
        build: makes the object of the worker, in its process.
        args: of `build`.
        needs: packages that must be installed.
        environment: variables of the process.
        alone: prepared while no other contestant runs, since it chooses its kernels by measuring them.
    """

    build: Callable[..., Any]
    args: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    alone: bool = False


class Team:
    """The processes of contestants. One that fails is closed, and `failures` keeps the reason by its name.

    A `sparing` team shares a device whose memory would not hold the peaks of all at once: they are prepared
    one after the other, and give the memory that they do not use back after each turn.
    """

    def __init__(
        self, contestants: Mapping[str, Contestant], only: Sequence[str] = (), *, sparing: bool = False
    ):
        self._sparing = sparing
        unknown = sorted(set(only) - contestants.keys())
        if unknown:
            raise ContestantError(f"unknown: {'; '.join(unknown)}. Known: {'; '.join(contestants)}")
        self.failures: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._alone = {name for name, each in contestants.items() if each.alone}
        for name, each in contestants.items():
            if only and name not in only:
                continue
            missing = [package for package in each.needs if importlib.util.find_spec(package) is None]
            if missing:
                self.failures[name] = f"not installed: {', '.join(missing)}"
            else:
                self._workers[name] = Worker(name, each.build, *each.args, environment=each.environment)

    @property
    def names(self) -> list[str]:
        """The names of those that still compete."""
        return list(self._workers)

    def call(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of one contestant; `None` if it fails."""
        begin = time.perf_counter()
        try:
            result = self._workers[name].call(method, *args, timeout=_PATIENCE)
        except ContestantError as error:
            self.drop(name, _reason(str(error)))
            harness.note(str(error))
            return None
        if (took := time.perf_counter() - begin) > 5:
            harness.note(f"{name}: {method} took {took:.0f} s")
        return result

    def together(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of all: first of each that wants to be alone, then of the others at once."""
        found = {name: self.call(name, method, *args) for name in self.names if name in self._alone}
        others = [name for name in self.names if name not in self._alone]
        with ThreadPoolExecutor(1 if self._sparing else max(1, len(others))) as pool:
            found |= dict(
                zip(others, pool.map(lambda name: self.call(name, method, *args), others), strict=True)
            )
        return {name: found[name] for name in self.names}

    def race(self, steps: int, rounds: int) -> dict[str, list[float]]:
        """Return the seconds a step of each that finished.

        Turns are taken one at a time, in an order shuffled each round.
        """
        shuffled, seconds = random.Random(0), {name: [] for name in self.names}
        for index in range(rounds):
            harness.note(f"round {index + 1} of {rounds}", passing=True)
            order = self.names
            shuffled.shuffle(order)
            for name in order:
                time.sleep(_SETTLE)
                taken = self.call(name, "seconds", steps, self._sparing)
                if taken is not None:
                    seconds[name].append(taken / steps)
        return {name: seconds[name] for name in self.names}

    def drop(self, name: str, reason: str) -> None:
        """Close a contestant."""
        self.failures[name] = reason
        self._workers.pop(name).close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _reason(text: str) -> str:
    """Return the line of a traceback that names the exception, else the last line."""
    lines = text.strip().splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Failure)\b", line)]
    return (named or lines)[-1]


class Machine:
    """The facts and the measured rates of the machine, in a process of its own."""

    def facts(self) -> dict[str, Any]:
        """Return what the numbers depend on beside the code."""
        return harness.facts()

    def copy(self) -> float:
        """Return the rate of MLX's copies in bytes per second, read and written."""
        from purestep import hardware

        return hardware.copy_rate().rate

    def limits(self, dtype: str) -> dict[str, float | None]:
        """Return the measured copy rate (bytes/s) and product rate (FLOP/s), and the published peak."""
        import mlx.core as mx

        from purestep import hardware

        wanted = getattr(mx, dtype)
        try:
            published = hardware.peak_flops(wanted)
        except Exception:  # the table of chips does not know this one
            published = None
        return {
            "copy": hardware.copy_rate().rate,
            "matmul": hardware.matmul_rate(wanted).rate,
            "published": published,
        }


def milliseconds(values: Sequence[float]) -> str:
    """Write median and quartiles of seconds in milliseconds."""
    spread = Spread.of(values)
    return spread.show(2 if spread.median < 0.1 else 1, 1e3)
