"""The directory of a run: its facts, and errors of writing."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep.checkpoint import LockedError

_LARGEST_RUN = 1_000_000  # bytes of run.json; a normal one has about 300


class WriteError(OSError):
    """A file of the run cannot be written."""


class RunDirectory:
    """A directory with `run.json`, and the metrics, checkpoints and pictures of the run."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.run = self.path / "run.json"

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

    def check_layout(self) -> None:
        """Raise if the states are files of an earlier version of purestep, which no phase would find.

        Raises:
            ValueError: if a state, but no directory of checkpoints, is in the directory.
        """
        states = sorted(self.path.glob("*.safetensors"))
        if states and not any((*self.path.glob("checkpoints"), *self.path.glob("*/checkpoints"))):
            raise ValueError(
                f"demo: --resume cannot continue the run in {self.path}: an earlier version of purestep "
                f"wrote its state into {states[0].name}. Start another run in another directory"
            )

    def contents(self) -> list[str]:
        """Return the names of the files and directories that a run has written."""
        there = (entry for entry in self.path.iterdir() if entry != self.run and entry.name != "bundles")
        return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in there)

    @contextmanager
    def writing(self, file: Path) -> Iterator[None]:
        """Turn an error of writing a file into a `WriteError` that names the file and how to resume."""
        try:
            yield
        except WriteError:
            raise
        except LockedError as error:
            raise WriteError(f"demo: {error}") from error
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
