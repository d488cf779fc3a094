"""The files of one run: settings, state, metrics, and what a resumed run must agree with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purestep import TrainState, checkpoint
from purestep.checkpoint import atomic


class RunDirectory:
    """A directory with `run.json`, `metrics.jsonl` and `state.safetensors`."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.run = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "state.safetensors"

    def start(self, facts: Mapping[str, Any]) -> None:
        """Claim the directory for a new run; refuse one that holds a run."""
        if self.run.exists():
            raise ValueError(
                f"demo: --out {self.path} already holds a run: go on with --resume, or name another directory"
            )
        atomic.write(self.run, lambda file: _write(file, json.dumps(facts, indent=1) + "\n"))
        self.metrics.touch()

    def facts(self) -> dict[str, Any]:
        """Return what `start` wrote."""
        if not self.run.is_file():
            raise ValueError(f"demo: --resume found no run in {self.path}: there is no {self.run.name}")
        try:
            return json.loads(self.run.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"demo: {self.run} is damaged: it is not JSON") from None

    def restore(self, like: TrainState) -> TrainState:
        """Return the last state saved, or the template itself where none was; later metrics are dropped."""
        state = checkpoint.load(self.state, like=like) if self.state.exists() else like
        kept = [row for row in self.history() if row["step"] <= state.step.item()]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        atomic.write(self.metrics, lambda file: _write(file, lines))
        return state

    def record(self, row: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics; a last line cut short by a crash is left out."""
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows


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


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
