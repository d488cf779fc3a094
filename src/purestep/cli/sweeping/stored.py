"""What a sweep keeps on the disk: its plan, and the figures of the runs that are done."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from purestep._checkpoint.disk import atomic
from purestep._core import checks
from purestep.cli.sweeping.grid import CALLER, Planned

METRICS, STATE, RESULT = "metrics.jsonl", "state.safetensors", "result.json"
_HIDDEN, _PLAN, _VERSION = ".sweep", "sweep.json", 1
_FIGURES = frozenset("loss validation_loss best_validation_loss best_step steps reason seconds out".split())


class Plan(NamedTuple):
    """What the command line asked for.

    Attributes:
        values: the settings that all runs share.
        texts: the texts of `--set`.
        members: the most runs of one population.
    """

    values: dict[str, Any]
    texts: list[str]
    members: int


def checkpoints(out: Path, number: int) -> Path:
    """Return the directory of the checkpoints of a population; it is hidden, so that `OUT/*` is the runs."""
    return out / _HIDDEN / str(number)


def is_stored(out: Path) -> bool:
    """Tell whether a directory holds a sweep."""
    return (out / _HIDDEN / _PLAN).is_file()


def store(out: Path, plan: Plan) -> None:
    """Write the plan of a sweep."""
    path = out / _HIDDEN / _PLAN
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps({"version": _VERSION, **plan._asdict()}, indent=1) + "\n")


def read(out: Path) -> Plan:
    """Return the plan of the sweep in a directory.

    Raises:
        ValueError: if there is none, or it is damaged.
        OSError: if it cannot be read.
    """
    if not is_stored(out):
        raise checks.error(CALLER, f"--resume found no sweep in {out}")
    path = out / _HIDDEN / _PLAN
    content = _json(path)
    version = content.pop("version", None) if isinstance(content, dict) else None
    if version != _VERSION:
        raise checks.error(CALLER, f"{path} must be a plan of version {_VERSION}, got another file")
    try:
        plan = Plan(**content)  # type: ignore[arg-type]
        sound = (
            isinstance(plan.values, dict)
            and isinstance(plan.texts, list)
            and all(isinstance(text, str) for text in plan.texts)
            and type(plan.members) is int
            and plan.members > 0
        )
    except TypeError:
        sound, plan = False, None
    if not sound or plan is None:
        raise checks.error(CALLER, f"{path} is damaged: begin the sweep again in another directory")
    return plan


def finish(directory: Path, figures: dict[str, Any]) -> None:
    """Mark a run as done, with its figures."""
    plain = {name: repr(v) if _is_broken(v) else v for name, v in figures.items()}
    atomic.write_text(directory / RESULT, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def finished(run: Planned) -> dict[str, Any] | None:
    """Return the figures of a run that is done, or `None`: a damaged file is as none."""
    directory = Path(run.values["out"])
    content = _json(directory / RESULT) if (directory / RESULT).is_file() else None
    if not isinstance(content, dict) or content.keys() != _FIGURES or not (directory / STATE).is_file():
        return None
    broken = {repr(v): v for v in (math.nan, math.inf, -math.inf)}
    return {name: broken.get(v, v) if isinstance(v, str) else v for name, v in content.items()}


def to_continue(out: Path) -> str:
    """Return the command that continues a sweep."""
    return f"python -m purestep sweep --resume --out {shlex.quote(str(out))}"


def rows(path: Path) -> Sequence[dict[str, Any]]:
    """Return the rows of a file of metrics; what is not a row is left out."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
