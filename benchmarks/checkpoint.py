"""Saving and restoring a state: throughput against other libraries, and what a save in the background costs.

Each contestant has a process of its own; they take turns, and make the state anew each turn, so that
only one is in memory. Every save ends with fsync of its files and their directory, and what was restored is
compared with what was saved before its time counts. Files are read back from the page cache, into memory
new to the process but not to the machine: page faults cost more than the reading, and a contestant whose
process had memory at hand would be spared them.

The targets: `Checkpointer`, with checksums, at 0.9 or more of the throughput of `mx.save_safetensors` and
`mx.load`; faster than torch, flax and orbax; a save in the background holds its caller under 5 ms, or
1 % of the save, and takes less than 64 MB. Peers that are not installed are left out, and said to be.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import mmap
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

import purestep as ps
from benchmarks import harness
from benchmarks.harness import Spread
from benchmarks.storers import BASE, CONTESTANTS, PEERS, same, state

SHARE, HELD, MEMORY = 0.9, 5e-3, 64e6


class Session:
    """One contestant in a worker's process."""

    def __init__(self, name: str, size: int):
        self._library = CONTESTANTS[name][0]()
        self._size = size

    def turn(self, directory: str) -> tuple[float, float]:
        """Save and restore once; return the seconds of each."""
        made = self._library.convert(state(self._size))
        path = Path(directory) / "saved"
        os.sync()
        saved, _ = self._timed(self._library.save, path, made)
        loaded, restored = self._timed(self._library.load, path, made)
        if not same(made, restored):
            raise AssertionError("what was restored is not what was saved")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        del made, restored
        _release()  # the next contestant needs the memory
        return saved, loaded

    def _timed(self, work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
        _release()
        _touch(2 * self._size)
        begin = time.perf_counter()
        result = work(*args)
        return time.perf_counter() - begin, result


class Background:
    """Saves in the background, in a worker's process."""

    def __init__(self, size: int):
        self._made = state(size)
        mx.clear_cache()

    def turn(self, directory: str) -> tuple[float, float, float]:
        """Save once; return the seconds the caller was held, those of the whole save, and bytes of growth."""
        path = Path(directory) / "saved"
        with ps.checkpoint.Checkpointer(path) as checkpointer:
            checkpointer.save({"w": mx.ones(1)}, step=0)  # the directory, the lock and the thread are there
            checkpointer.wait()
            os.sync()
            before = _reset_peak()
            begin = time.perf_counter()
            checkpointer.save(self._made, step=1)
            held = time.perf_counter() - begin
            checkpointer.wait()
            whole = time.perf_counter() - begin
            grown = _peak() - before
        shutil.rmtree(path)
        return held, whole, grown


def _release() -> None:
    """Give memory that nothing uses back to the system."""
    gc.collect()
    mx.clear_cache()
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library other than GNU's
            ctypes.CDLL(None).malloc_trim(0)


def _touch(size: int) -> None:
    """Have so much free memory at hand: a virtual machine's first use of it waits for the host's."""
    block = b"1" * (1 << 20)
    with mmap.mmap(-1, size + len(block)) as memory:
        for start in range(0, size, len(block)):
            memory[start : start + len(block)] = block


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024.0 * int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the state (2)")
    parser.add_argument("--rounds", type=harness.positive, default=5, help="turns of each contestant (5)")
    parser.add_argument("--without", nargs="+", default=[], choices=sorted(PEERS), help="leave out")
    parser.add_argument("--directory", help="where to write; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return 1 if a target was missed."""
    size = int(options.gigabytes * 1e9)
    known = {
        name: (name, size)
        for name, (_, needs) in CONTESTANTS.items()
        if all(importlib.util.find_spec(module) for module in needs)
    }
    for name in options.without:
        known.pop(name, None)
    missing = sorted(CONTESTANTS.keys() - known.keys())
    if missing:
        harness.note(f"left out: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="purestep-checkpoint-") as directory:
        with harness.workers(Session, known, cold=False) as workers:
            times = _rounds(workers, directory, options.rounds)
        with harness.Worker("background", Background, size) as worker:
            background = [worker.call("turn", directory) for _ in range(options.rounds + 1)][1:]
    result = _summary(times, background, size)
    if options.json:
        print(json.dumps({**result, "facts": harness.facts()}, indent=1))
    else:
        _print(result, missing)
    return 0 if all(result["reached"].values()) else 1


Times = dict[str, list[tuple[float, float]]]


def _rounds(workers: list[harness.Worker], directory: str, rounds: int) -> Times:
    times: Times = {worker.name: [] for worker in workers}
    draw, order = random.Random(0), list(workers)
    for index in range(rounds + 1):
        draw.shuffle(order)
        for worker in order:
            harness.note(f"round {index} of {rounds}: {worker.name}", passing=True)
            measured = worker.call("turn", directory)
            if index:  # the first warms up
                times[worker.name].append(measured)
    return times


def _summary(times: Times, background: list[tuple[float, float, float]], size: int) -> dict[str, Any]:
    ours, base = times["purestep Checkpointer"], times[BASE]
    contestants = {
        name: {
            kind: {
                "gigabytes_per_second": Spread.of([size / 1e9 / turn[index] for turn in turns]),
                "of_mlx": Spread.of_ratios([b[index] for b in base], [turn[index] for turn in turns]),
            }
            for index, kind in enumerate(("save", "restore"))
        }
        for name, turns in times.items()
    }
    held, whole, grown = (statistics.median(values) for values in zip(*background, strict=True))
    reached = {
        "save at 0.9 of mlx": contestants["purestep Checkpointer"]["save"]["of_mlx"].median >= SHARE,
        "restore at 0.9 of mlx": contestants["purestep Checkpointer"]["restore"]["of_mlx"].median >= SHARE,
        **{
            f"{kind} faster than {name}": statistics.median(turn[index] for turn in ours)
            < statistics.median(turn[index] for turn in times[name])
            for index, kind in enumerate(("save", "restore"))
            for name in sorted(PEERS & times.keys())
        },
        "held under 5 ms or 1 %": held < max(HELD, whole / 100),
        "memory under 64 MB": grown < MEMORY,
    }
    return {
        "contestants": contestants,
        "background": {"held_s": held, "save_s": whole, "grown_bytes": grown},
        "reached": reached,
    }


def _print(result: dict[str, Any], missing: list[str]) -> None:
    rows = [
        [
            name,
            *(measured[kind][unit].show() for kind in ("save", "restore") for unit in measured[kind]),
        ]
        for name, measured in result["contestants"].items()
    ]
    print(harness.table(["", "save GB/s", "/ mlx", "restore GB/s", "/ mlx"], rows))
    background = result["background"]
    print(
        f"\nin the background: caller held {1e3 * background['held_s']:.2f} ms of a save of "
        f"{background['save_s']:.2f} s; memory grew by {background['grown_bytes'] / 1e6:.1f} MB\n"
    )
    for target, reached in result["reached"].items():
        print(f"{'reached' if reached else 'MISSED '}  {target}")
    if missing:
        print(f"\nnot installed, or left out: {', '.join(missing)}")
    print(f"\n{harness.facts_lines(harness.facts())}")
