"""How far a tracker has recorded a run, in a small file, for libraries that cannot say it themselves."""

import json
from collections.abc import Mapping
from pathlib import Path

from purestep._checkpoint.disk import atomic


def path_of(directory: Path, run_id: str) -> Path:
    """Return the file of a run."""
    return directory / f"purestep-{run_id}.json"


def read(path: Path) -> dict[str, int]:
    """Return the last recorded step of each kind of row. A missing or damaged file gives nothing."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: step for name, step in found.items() if type(step) is int}


def write(path: Path, steps: Mapping[str, int]) -> None:
    """Write the last recorded steps, whole or not at all."""
    atomic.write_text(path, json.dumps(dict(steps)))
