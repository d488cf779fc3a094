"""The record of a run: JSON, table and picture in `benchmarks/results`."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness import pictures
from benchmarks.harness.text import note

RESULTS = Path(__file__).parents[1] / "results"
_SHARED = ("json", "save", "limit")


class Record:
    """What a benchmark has found so far, a dict of plain values.

    With a `folder`, `keep` writes it to `LABEL-DEVICE.partial.json`: a run that is killed loses one round.
    """

    def __init__(self, benchmark: str, options: argparse.Namespace, folder: Path | None = None):
        given = {name: value for name, value in vars(options).items() if name not in _SHARED}
        self.found: dict[str, Any] = {"benchmark": benchmark, "label": benchmark, "options": given}
        self._folder = folder

    def keep(self, **found: Any) -> None:
        """Add to what was found, and write it down."""
        self.found |= found
        if self._folder is not None and "facts" in self.found:
            self._folder.mkdir(exist_ok=True)
            self._write(self._path(".partial.json"), json.dumps(self.plain(), indent=1))

    def plain(self) -> dict[str, Any]:
        """Return what was found as it is read back from JSON."""
        return json.loads(json.dumps(self.found, default=str))

    def save(self, text: str, panels: list[pictures.Panel]) -> None:
        """Write JSON, text and, if matplotlib is installed, the picture."""
        if self._folder is None:
            return
        self._folder.mkdir(exist_ok=True)
        self._write(self._path(".json"), json.dumps(self.plain(), indent=1))
        self._write(self._path(".txt"), text)
        self._path(".partial.json").unlink(missing_ok=True)
        draw(self.found, panels, self._path(".png"))

    def _path(self, ending: str) -> Path:
        assert self._folder is not None
        return self._folder / (stem(self.found) + ending)

    def _write(self, path: Path, text: str) -> None:
        new = path.with_name(f".{path.name}.new")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(path)


def stem(found: Mapping[str, Any]) -> str:
    """Return the name of the files of a record: its label and its device, without the vendor's punctuation.

    >>> stem({"label": "optimizer-gpt2", "facts": {"device": "NVIDIA H100 80GB HBM3"}})
    'optimizer-gpt2-nvidia-h100-80gb-hbm3'
    """
    device = re.sub(r"[^a-z0-9]+", "-", str(found["facts"]["device"]).lower()).strip("-")
    return f"{found['label']}-{device}" if device != found["label"] else device


def draw(found: Mapping[str, Any], panels: list[pictures.Panel], path: Path) -> None:
    """Draw the picture of a record, if there is something to draw and matplotlib is installed."""
    facts = found["facts"]
    shown = [str(facts.get(name)) for name in ("processor", "device") if facts.get(name)]
    versions = [f"{name} {facts[name]}" for name in ("purestep", "mlx", "torch", "jax") if facts.get(name)]
    load = f"load {facts.get('load')} before, {facts.get('load after')} after"
    machine = ", ".join(dict.fromkeys([*shown, f"{facts.get('cores')} cores", load]))
    stopped = f" - stopped: {found['stopped']}" if found.get("stopped") else ""
    try:
        pictures.draw(panels, path, title=found["label"] + stopped, below=[machine, ", ".join(versions)])
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "matplotlib":
            raise
        note("no picture: matplotlib is not installed (pip install 'purestep[demo]')")


def show(benchmark: ModuleType, found: dict[str, Any]) -> str:
    """Write the tables of a record, and why it ended early."""
    text = benchmark.show(found)
    return text + f"\n\nstopped: {found['stopped']}" if found.get("stopped") else text


def load(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: if the file is no record of a benchmark.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"show: FILE must be a record of a benchmark, got {path}: {error}") from None
    if not isinstance(found, dict) or not {"benchmark", "label", "facts"} <= found.keys():
        raise ValueError(f"show: FILE must be a record of a benchmark, got {path}")
    return found
