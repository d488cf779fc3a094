"""Runs of `fit` and `train`, read from their directories."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from purestep._core import checks
from purestep._loop.config import files
from purestep.cli.plotting.rows import LONGEST, Rows, rows_of

METRICS, CONFIG = "metrics.jsonl", "config.toml"
_LARGEST = 2**30  # bytes of metrics
_MOST_SETTINGS = 1000
_PLACES = frozenset({"out"})  # they name a run, and say nothing of it


class RunFiles(NamedTuple):
    """What the files of a run say.

    Attributes:
        name: a short name that no other run of the comparison has.
        path: the file of the metrics.
        rows: the rows by step.
        config: the settings by name, those of a table as `table.name`; empty without a `config.toml`.
        notes: sentences on what was left out.
    """

    name: str
    path: Path
    rows: Rows
    config: Mapping[str, Any]
    notes: Sequence[str]


def read_runs(caller: str, paths: Sequence[Path]) -> list[RunFiles]:
    """Read runs: directories with a `metrics.jsonl`, or files of JSON lines.

    Raises:
        ValueError: if a path has no metrics, or a file is no regular file, or is too large.
        OSError: if a file cannot be read.
    """
    places = [metrics_of(caller, path) for path in paths]
    names = short_names([path.parent if path.name == METRICS else path for path in places])
    return [read_run(caller, name, place) for name, place in zip(names, places, strict=True)]


def metrics_of(caller: str, path: Path) -> Path:
    """Return the file of metrics that a path stands for.

    Raises:
        ValueError: if there is none.
    """
    if path.is_dir():
        if not (path / METRICS).exists():
            raise checks.error(caller, f"{path} must hold a {METRICS}; it is written by callbacks.jsonl")
        return path / METRICS
    if not path.exists():
        raise checks.error(caller, f"there is no {path}")
    return path


def read_run(caller: str, name: str, path: Path) -> RunFiles:
    """Read one run."""
    with open_regular(caller, path) as file:
        return run_of(name, path, rows_of(lines_of(file)))


def run_of(name: str, path: Path, rows: Rows) -> RunFiles:
    """Return a run with these rows, its settings, and notes on what was left out of both."""
    notes = []
    if rows.skipped:
        notes.append(f"{rows.skipped} lines of {path} are not rows of a run and were left out")
    if rows.stride > 1:
        notes.append(f"of {path} one row of {rows.stride} was kept")
    if rows.dropped:
        notes.append(f"figures of {path} beyond the first 4096 were left out")
    return RunFiles(name, path, rows, config_of(path.parent / CONFIG, notes), notes)


def open_regular(caller: str, path: Path) -> Any:
    """Open a regular file to read bytes; anything else could block or never end.

    Raises:
        ValueError: if it is no regular file, or larger than 1 GiB.
        OSError: if it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise checks.error(caller, f"{path} must be a regular file")
        if status.st_size > _LARGEST:
            raise checks.error(caller, f"{path} must be at most 1 GiB, got {status.st_size} bytes")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def lines_of(file: Any) -> Iterator[bytes]:
    """Yield the complete lines of a file. The last one may be cut short, if the run is being written.

    A line that is longer than a row can be is yielded in part, so that it is counted and not held.
    """
    while line := file.readline(LONGEST + 2):
        if line.endswith(b"\n"):
            yield line
        elif len(line) > LONGEST:
            yield line
            while rest := file.readline(LONGEST):
                if rest.endswith(b"\n"):
                    break


def config_of(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return the settings of a run, flat; a file that cannot be read is a note."""
    if not os.path.lexists(path):
        return {}
    try:
        table = files.read_toml("config", path)
    except (ValueError, OSError) as error:
        notes.append(f"{path} was left out: {error}")
        return {}
    found: dict[str, Any] = {}
    _flatten(found, table, "")
    if len(found) > _MOST_SETTINGS:
        notes.append(f"{path} was left out: it has more than {_MOST_SETTINGS} settings")
        return {}
    return found


def differences(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, with the value of each run; `None` if it has none.

    Runs without settings do not count: they would make every setting of the others a difference.
    """
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return {}
    names = dict.fromkeys(name for run in known for name in run.config if name not in _PLACES)
    return {
        name: [run.config.get(name) for run in runs]
        for name in names
        if len({repr(run.config.get(name)) for run in known}) > 1
    }


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; equal paths get a number.

    >>> short_names([Path("runs/a/x"), Path("runs/b/x"), Path("runs/b/x")])
    ['a/x', 'b/x', 'b/x (2)']
    """
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    counts = [1] * len(paths)
    for number, parts in enumerate(whole):
        others = [other for other in whole if other != parts]
        while counts[number] < len(parts) and any(
            other[-counts[number] :] == parts[-counts[number] :] for other in others
        ):
            counts[number] += 1
    names: list[str] = []
    for parts, count in zip(whole, counts, strict=True):
        name = "/".join(parts[-count:])
        same = sum(known == name or known.startswith(f"{name} (") for known in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def _flatten(found: dict[str, Any], table: Mapping[str, Any], prefix: str) -> None:
    for name, value in table.items():
        if isinstance(value, dict):
            _flatten(found, value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
