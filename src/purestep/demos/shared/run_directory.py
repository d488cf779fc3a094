"""The files of a run: its facts, its metrics and its state."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import purestep as ps
from purestep._checkpoint.disk import atomic

_LARGEST_RUN = 1_000_000  # bytes of run.json; a normal one has about 300


class WriteError(OSError):
    """A file of the run cannot be written."""


class RunDirectory:
    """A directory with `run.json`, `metrics.jsonl` and `state.safetensors`."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.run = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "state.safetensors"

    def start(self, facts: Mapping[str, Any]) -> None:
        """Start a new run in the directory.

        Raises:
            ValueError: if the directory already holds a run.
            WriteError: if the directory cannot be written.
        """
        if self.run.exists():
            raise ValueError(
                f"demo: --out {self.path} already holds a run: add --resume, or choose another directory"
            )
        try:
            atomic.write_text(self.run, json.dumps(facts, indent=1) + "\n")
            self.metrics.touch()
        except OSError as error:
            raise WriteError(f"demo: --out {self.path} cannot be written: {_reason(error)}") from error

    def facts(self) -> Any:
        """Return the content of `run.json`: any JSON value, since the file may come from elsewhere."""
        if not self.run.is_file():
            raise ValueError(f"demo: --resume found no run in {self.path}: there is no {self.run.name}")
        with self.run.open("rb") as file:
            content = file.read(_LARGEST_RUN + 1)
        if len(content) > _LARGEST_RUN:
            raise ValueError(f"demo: {self.run} is damaged: it has more than {_LARGEST_RUN:,} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError(f"demo: {self.run} is damaged: it is not JSON") from None

    def save(self, file: Path, state: ps.TrainState) -> None:
        """Flush the metrics to disk, then write a state atomically."""
        with self.writing(self.metrics):
            atomic.flush(self.metrics)
        with self.writing(file):
            ps.checkpoint.save(file, state)

    def record(self, row: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with self.writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace all lines of metrics by these."""
        with self.writing(self.metrics):
            atomic.write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics. A last line that a crash cut short is skipped.

        Raises:
            ValueError: if any other line is invalid.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            row = _row(line)
            if row is None:
                raise ValueError(f"demo: {self.metrics} is damaged in line {number}")
            rows.append(row)
        # The text after the last newline is empty or a line that may be complete but for its newline.
        last = _row(lines[-1])
        return rows if last is None else [*rows, last]

    @contextmanager
    def writing(self, file: Path) -> Iterator[None]:
        """Turn an error of writing a file into a `WriteError` that names the file and how to resume."""
        try:
            yield
        except WriteError:
            raise
        except OSError as error:
            # An error of `checkpoint.save` has no errno and names the file itself.
            said = f"{file} cannot be written: {error.strerror}" if error.strerror else str(error).rstrip(".")
            raise WriteError(
                f"demo: {said}. Saved states are kept; "
                f"to continue once this is fixed: --resume --out {self.path}"
            ) from error


def next_free(path: str) -> str:
    """Return the path, or the first of path-2, path-3, ... that holds no run."""
    number = 1
    while (Path(_numbered(path, number)) / "run.json").exists():
        number += 1
    return _numbered(path, number)


def latest(path: str) -> str:
    """Return the last of path, path-2, ... that holds a run, or the path itself."""
    number = 1
    while (Path(_numbered(path, number + 1)) / "run.json").exists():
        number += 1
    return _numbered(path, number)


def _numbered(path: str, number: int) -> str:
    return path if number == 1 else f"{path}-{number}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics: a step, numbers and possibly a phase; `None` if it is invalid."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_number(row.get("step"), int):
        return None
    numbers = (value for key, value in row.items() if key != "phase")
    sound = isinstance(row.get("phase", ""), str) and all(_is_number(value) for value in numbers)
    return row if sound else None


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
