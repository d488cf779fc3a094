"""What policies see: the record of each checkpoint, and the moment at which a save may be due."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from purestep._core import checks

MODES = ("min", "max")


class Record(NamedTuple):
    """The facts of one complete checkpoint, without its arrays.

    Attributes:
        step: the number of steps made.
        serial: its place in the order of saving. After a rollback it differs from the order of steps.
        time: when it was saved, seconds since 1970.
        metrics: the numbers that were passed to `save`.
        metadata: the user's own plain values: epoch, position in the data, best value, history.
        versions: of purestep, MLX and Python, when it was saved.
        bytes: of all its files.
        path: its directory.
    """

    step: int
    serial: int
    time: float
    metrics: dict[str, float]
    metadata: dict[str, Any]
    versions: dict[str, str]
    bytes: int
    path: Path


class Moment(NamedTuple):
    """The moment for which a policy decides whether to save.

    Attributes:
        step: steps made.
        time: now, seconds since 1970.
        metrics: the metrics of this step. Reading one waits for the device.
        signalled: whether the process received a signal to stop.
        started: when the run was started, seconds since 1970.
    """

    step: int
    time: float
    metrics: Mapping[str, float]
    signalled: bool
    started: float


def best_of(records: Sequence[Record], metric: str, mode: str) -> list[Record]:
    """Return the records that have this metric, best first. Equal records are in the order of saving.

    NaN is never a best value.
    """
    rated = [r for r in records if metric in r.metrics and not math.isnan(r.metrics[metric])]
    sign = 1 if mode == "min" else -1
    return sorted(rated, key=lambda r: (sign * r.metrics[metric], r.serial))


def check_metric(caller: str, metric: str, mode: str) -> None:
    """Refuse a metric that is not a string, and a mode other than `min` and `max`."""
    if not isinstance(metric, str):
        raise TypeError(f"{caller}: metric must be the name of a metric, got {metric!r}")
    if mode not in MODES:
        raise checks.error(caller, f"mode must be min or max, got {mode!r}")
