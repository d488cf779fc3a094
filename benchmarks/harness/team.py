"""Contestants of several frameworks that may be absent, fail or disagree while the others go on."""

import importlib.util
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.harness.limits import Limit
from benchmarks.harness.processes import ContestantError, Worker, at_once, take_turns
from benchmarks.harness.text import note

_PATIENCE = 300.0  # seconds for one call
_PREPARING = 0.65  # share of the time that is left
_LEAST = 5.0  # seconds for one call, however little time is left
_AT_ONCE = 6  # contestants that are prepared at the same time


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

    They share a device whose memory may not hold the peaks of all at once, so they give the memory that they
    do not use back after each turn. Those of a `sparing` team are also prepared one after the other.

    All are built at once. The preparation by `together` ends after `_PREPARING` of the time to the limit: who
    is not ready by then is closed, so that the others race.
    """

    def __init__(
        self,
        contestants: Mapping[str, Contestant],
        only: Sequence[str] = (),
        *,
        sparing: bool = False,
        limit: Limit | None = None,
    ):
        self._sparing, self._limit, self._stopped = sparing, limit or Limit(), False
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
                self._workers[name] = Worker(
                    name, each.build, *each.args, eager=True, environment=each.environment
                )

    @property
    def names(self) -> list[str]:
        """The names of those that still compete."""
        return list(self._workers)

    def call(self, name: str, method: str, *args: Any, limit: Limit | None = None) -> Any:
        """Call a method of one contestant; `None` if it fails, or takes too long."""
        begin = time.perf_counter()
        timeout = max(_LEAST, min(_PATIENCE, (limit or Limit()).left()))
        try:
            result = self._workers[name].call(method, *args, timeout=timeout)
        except ContestantError as error:
            if self._stopped:  # by the time limit or a signal, and by no fault of its own
                return None
            self.drop(name, _reason(str(error)).removeprefix(f"{name}: "))
            note(str(error))
            return None
        if (took := time.perf_counter() - begin) > 5:
            note(f"{name}: {method} took {took:.0f} s")
        return result

    def together(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of all: first of each that wants to be alone, then of the others at once."""
        limit = self._limit.share(_PREPARING)
        alone = limit.share(0.6)
        found = {
            name: self.call(name, method, *args, limit=alone) for name in self.names if name in self._alone
        }
        others = [name for name in self.names if name not in self._alone]
        calls = [partial(self.call, name, method, *args, limit=limit) for name in others]
        results = at_once(calls, 1 if self._sparing else _AT_ONCE, self._stop)
        found |= dict(zip(others, results, strict=True))
        return {name: found[name] for name in self.names}

    def race(
        self,
        steps: int,
        rounds: int,
        after: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
    ) -> dict[str, list[float]]:
        """Return the seconds a step of each that finished; `after` is called with the same each round."""

        def turn(name: str) -> float | None:
            taken = self.call(name, "seconds", steps)
            return None if taken is None else taken / steps

        return take_turns(lambda: self.names, turn, rounds=rounds, limit=self._limit, after=after)

    def drop(self, name: str, reason: str) -> None:
        """Close a contestant."""
        self.failures[name] = reason
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.popitem()[1].close()

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, error: object, *rest: object) -> None:
        if error is not None:
            self._stop()
        self.close()

    def _stop(self) -> None:
        self._stopped = True
        for worker in list(self._workers.values()):
            worker.kill()


def _reason(text: str) -> str:
    """Return the line of a traceback that names the exception, else the last line."""
    lines = text.strip().splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Failure)\b", line)]
    return (named or lines)[-1]
