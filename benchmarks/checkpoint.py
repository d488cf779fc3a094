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
import mmap
import os
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
from benchmarks.harness import Limit, Panel, Record, Spread, Worker
from benchmarks.workloads.storers import BASE, CONTESTANTS, PEERS, same, state

SHARE, HELD, MEMORY = 0.9, 5e-3, 64e6
OURS, KINDS = "purestep Checkpointer", ("save", "restore")


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


class Disk:
    """The bytes alone, in a worker's process: what the disk and the page cache allow."""

    def turn(self, directory: str, size: int) -> tuple[float, float]:
        """Write and flush so many bytes, and read them into one small buffer; return the seconds of each."""
        path, block = Path(directory) / "bytes", memoryview(bytearray(os.urandom(1 << 24)))
        counts = [min(len(block), size - at) for at in range(0, size, len(block))]
        os.sync()
        begin = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for count in counts:
                file.write(block[:count])
            os.fsync(file.fileno())
        written = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            for count in counts:
                file.readinto(block[:count])
        read = time.perf_counter()
        path.unlink()
        return written - begin, read - written


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


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Let the contestants take turns, then save in the background."""
    size = int(options.gigabytes * 1e9)
    known = {
        name: (name, size)
        for name, (_, needs) in CONTESTANTS.items()
        if all(importlib.util.find_spec(module) for module in needs) and name not in options.without
    }
    missing = sorted(CONTESTANTS.keys() - known.keys())
    record.keep(
        facts=harness.facts(), size=size, missing=missing, bytes=[], save={}, restore={}, background=[]
    )
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="purestep-checkpoint-") as directory:
        with Worker("disk", Disk) as worker:
            record.found["bytes"] = [worker.call("turn", directory, size) for _ in range(4)][1:]
        with harness.workers(Session, known, cold=False) as workers:
            _race(workers, directory, options.rounds, record, limit.share(0.8))
        with Worker("background", Background, size) as worker:
            harness.note("in the background")
            worker.call("turn", directory)
            for index in range(options.rounds):
                if index and limit.left() < 2 * record.found["background"][-1][1]:
                    break
                record.found["background"].append(worker.call("turn", directory))
                record.keep()


def _race(workers: list[Worker], directory: str, rounds: int, record: Record, limit: Limit) -> None:
    turns: dict[str, list[tuple[float, float]]] = {worker.name: [] for worker in workers}
    by_name = {worker.name: worker for worker in workers}

    def turn(name: str) -> float:
        turns[name].append(by_name[name].call("turn", directory))
        return sum(turns[name][-1])

    def after(seconds: dict[str, list[float]]) -> None:
        for index, kind in enumerate(KINDS):  # the first round warms up
            values = {name: [t[index] for t in turns[name]][1 : len(all_)] for name, all_ in seconds.items()}
            record.found[kind] = values
        record.keep()

    harness.take_turns(lambda: list(turns), turn, rounds=rounds + 1, limit=limit, after=after)


def reached(found: dict[str, Any]) -> dict[str, bool]:
    """Return the targets that were measured, and whether they were reached."""
    result = {}
    for kind in KINDS:
        seconds = {name: values for name, values in found[kind].items() if values}
        if OURS not in seconds:
            continue
        over = Spread.of_ratios(seconds[BASE], seconds[OURS]).median
        result[f"{kind} at {SHARE} of {BASE}"] = over >= SHARE
        for name in sorted(PEERS & seconds.keys()):
            faster = statistics.median(seconds[OURS]) < statistics.median(seconds[name])
            result[f"{kind} faster than {name}"] = faster
    if found["background"]:
        held, whole, grown = _background(found)
        result["held under 5 ms or 1 %"] = held < max(HELD, whole / 100)
        result["memory under 64 MB"] = grown < MEMORY
    return result


def _background(found: dict[str, Any]) -> list[float]:
    return [statistics.median(values) for values in zip(*found["background"], strict=True)]


def show(found: dict[str, Any]) -> str:
    """Write the results."""
    size, rows = found["size"] / 1e9, []
    for name in found["save"]:
        row = [name]
        for kind in KINDS:
            seconds, base = found[kind][name], found[kind][BASE]
            row.append(Spread.of([size / each for each in seconds]).show() if seconds else "-")
            row.append(harness.ratio(base, seconds))
        rows.append(row)
    made = max((len(values) for values in found["save"].values()), default=0)
    lines = [
        harness.facts_lines(found["facts"]),
        "",
        f"a state of {size:g} GB, {made} rounds",
        *_alone(found),
        harness.table(["", "save GB/s", "/ mlx", "restore GB/s", "/ mlx"], rows),
    ]
    if found["background"]:
        held, whole, grown = _background(found)
        lines.append(
            f"\nin the background: caller held {1e3 * held:.2f} ms of a save of {whole:.2f} s; memory grew "
            f"by {grown / 1e6:.1f} MB\n"
        )
    lines += [f"{'reached' if good else 'MISSED '}  {target}" for target, good in reached(found).items()]
    if found["missing"]:
        lines.append(f"\nnot installed, or left out: {', '.join(found['missing'])}")
    return "\n".join(lines)


def _alone(found: dict[str, Any]) -> list[str]:
    if not found["bytes"]:
        return []
    rates = [found["size"] / 1e9 / min(seconds) for seconds in zip(*found["bytes"], strict=True)]
    return [f"the bytes alone, in one file by one thread: {rates[0]:.2f} GB/s saved, {rates[1]:.2f} restored"]


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: seconds to save and to restore, over those of the bytes alone."""
    made = []
    for index, kind in enumerate(KINDS):
        least = min((turn[index] for turn in found["bytes"]), default=None)
        made.append(
            Panel(
                f"{kind.capitalize()} {found['size'] / 1e9:g} GB",
                "s, less is better",
                harness.bars(found[kind], BASE, scale=1.0),
                least,
                "the bytes alone: one file, one thread",
            )
        )
    return made


def missed(found: dict[str, Any]) -> list[str]:
    """Return the targets that were missed."""
    return [target for target, good in reached(found).items() if not good]
