"""Contestants in processes of their own, and the race in which they take turns."""

import multiprocessing
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness.limits import Limit
from benchmarks.harness.text import note

SETTLE = 0.05  # seconds between turns: OpenBLAS threads spin for up to some 30 ms after their last product


class ContestantError(Exception):
    """A contestant failed, died or disagrees; nothing that was measured counts."""


class Worker:
    """An object in a process of its own: `build(*args)` runs there, and so does every method called.

    It is built when the first method is called, or at once if `eager`.

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
        eager: bool = False,
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="purestep-benchmark-")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, args, eager), daemon=True)
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

    def __exit__(self, error: object, *rest: object) -> None:
        if error is not None:
            self.kill()
        self.close()

    def kill(self) -> None:
        """End the process at once; a call that waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """End the process and remove its folder."""
        self._pipe.close()  # the other end reads the end of the file, and returns
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, build: Callable[..., Any], args: tuple[Any, ...], eager: bool) -> None:
    built, failure = None, ""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent is done, or gone
        while True:
            if eager and built is None and not failure:
                try:
                    built = build(*args)
                except Exception:
                    failure = traceback.format_exc()
            method, given = pipe.recv()
            try:
                built = build(*args) if built is None and not failure else built
                answer = (True, failure) if failure else (False, getattr(built, method)(*given))
            except Exception:
                answer = (True, traceback.format_exc())
            pipe.send(answer)


@contextmanager
def workers(
    build: Callable[..., Any],
    contestants: Mapping[str, tuple[Any, ...]],
    *,
    cold: bool,
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[Worker]]:
    """Keep one process for each contestant alive, `build(*contestants[name])` in it."""
    with ExitStack() as stack:
        given = environment or {}
        started = (
            Worker(name, build, *args, cold=cold, environment=given) for name, args in contestants.items()
        )
        yield [stack.enter_context(worker) for worker in started]


def at_once(calls: Sequence[Callable[[], Any]], threads: int, stop: Callable[[], None]) -> list[Any]:
    """Make calls of several workers, so many at a time; return their results in order.

    If a signal or the time limit ends the wait, `stop` must end the processes that the threads wait for.
    """
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        return list(pool.map(lambda call: call(), calls))
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown()


def race(
    contestants: Sequence[Worker],
    *,
    steps: int,
    rounds: int,
    limit: Limit | None = None,
    after: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
) -> dict[str, list[float]]:
    """Let each contestant run `steps` steps a round, one at a time, in an order shuffled anew each round.

    Returns:
        For each name its seconds a step, round by round: values of one index were measured side by side.
        `after` is called with the same after each round.
    """

    def turn(name: str) -> float:
        return by_name[name].call("seconds", steps) / steps

    by_name = {worker.name: worker for worker in contestants}
    return take_turns(lambda: list(by_name), turn, rounds=rounds, limit=limit, after=after)


def take_turns(
    names: Callable[[], list[str]],
    turn: Callable[[str], float | None],
    *,
    rounds: int,
    limit: Limit | None = None,
    after: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
) -> dict[str, list[float]]:
    """Call `turn` for each name in each round, in an order shuffled anew; `None` means that it failed.

    The first round always begins; a later one begins only if one as long as the longest so far ends within
    the limit.

    Returns:
        For each of `names()`, the results round by round.
    """
    shuffled, seconds, longest = random.Random(0), {name: list[float]() for name in names()}, 0.0
    for index in range(rounds):
        if index and limit is not None and limit.left() < 1.1 * longest:
            note(f"the time limit allows {index} rounds of {rounds}")
            break
        note(f"round {index + 1} of {rounds}", passing=True)
        begun, order = time.monotonic(), names()
        shuffled.shuffle(order)
        for name in order:
            time.sleep(SETTLE)
            taken = turn(name)
            if taken is not None:
                seconds[name].append(taken)
        longest = max(longest, time.monotonic() - begun)
        after({name: list(seconds[name]) for name in names()})
    return {name: seconds[name] for name in names()}
