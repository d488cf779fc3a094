"""What tests of the demos share: options, interruptions, and the files of a run."""

import argparse
import json
from pathlib import Path
from typing import Any


class Asked:
    """An interruption that arrives at the given number of queries."""

    def __init__(self, after: int = 10**9):
        self.left = after

    @property
    def received(self) -> bool:
        """Count one query."""
        self.left -= 1
        return self.left <= 0


def options(**given: Any) -> argparse.Namespace:
    """Return the parsed options of a run that is not compiled and prints JSON."""
    return argparse.Namespace(**{"out": None, "resume": False, "json": True, "compile": False, **given})


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def check_files(path: Path, *phases: str) -> None:
    """Check that a short demo wrote its files, one state for each phase, and a PNG."""
    states = {f"{phase}.safetensors" for phase in phases}
    assert {file.name for file in path.iterdir()} == {"run.json", "metrics.jsonl", "curves.png"} | states
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
