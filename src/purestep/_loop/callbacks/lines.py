"""`jsonl`: the rows of a run in a file of JSON lines."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.disk.naming import check_path
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.progress import Progress, Run


class MetricsWarning(UserWarning):
    """A row could not be written; training goes on."""


def encoded(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON. NaN and infinities become null, since JSON has no such numbers.

    >>> encoded({"step": 1, "loss": float("nan")})
    '{"step": 1, "loss": null}'
    """
    sound = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(sound, ensure_ascii=True)


def kept(content: bytes, step: int) -> list[bytes]:
    """Return the lines that belong to steps up to this one. A line that a crash cut short is dropped.

    >>> kept(b'{"step": 1}\\n{"step": 2}\\n{"st', 1)
    [b'{"step": 1}']
    """
    lines = []
    for text in content.split(b"\n"):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
            lines.append(text)
    return lines


class Lines(Metered):
    """Appends rows to a file; `jsonl` makes it."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self._warned = path, False

    def on_train_begin(self, run: Run) -> None:
        """Prepare the file: drop the rows of later steps, or move the file of another run away."""
        super().on_train_begin(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.touch()
        elif run.start == 0:
            if self.path.stat().st_size:
                self.path.replace(self.path.with_name(self.path.name + ".before"))
            self.path.touch()
        else:
            lines = kept(self.path.read_bytes(), run.start)
            atomic.write_text(self.path, "".join(f"{line.decode()}\n" for line in lines))

    def on_step_end(self, progress: Progress) -> None:
        """Append a row."""
        super().on_step_end(progress)
        if progress.row is not None:
            counts = {"epoch": progress.epoch, "samples": progress.samples, "tokens": progress.tokens}
            self._append({"step": progress.step, **progress.row, **self.rates, **counts, **_time(progress)})

    def on_eval_end(self, progress: Progress) -> None:
        """Append the figures and texts of an evaluation."""
        row = {"step": progress.step, **(progress.evaluated or {}), **progress.texts, **_time(progress)}
        self._append(row)
        super().on_eval_end(progress)

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(encoded(row) + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                message = f"jsonl: {self.path} cannot be written, training goes on: {error.strerror or error}"
                warnings.warn(message, MetricsWarning, stacklevel=2)


def jsonl(path: str | os.PathLike[str]) -> Lines:
    """Append each row and each evaluation to a file, one JSON object a line.

    A row has `step`, the metrics, `steps_per_second` and so on, `epoch`, `samples`, `tokens` and `seconds`.
    NaN and infinities are written as null. A resumed run first drops the rows of steps that it will repeat.
    If a new run finds a file, the file is renamed to `NAME.before`. On a full disk there is one
    `MetricsWarning`, and training goes on.

    Args:
        path: the file; its directory is created.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> path = tempfile.mkdtemp() + "/metrics.jsonl"
    >>> step = ps.train_step(loss_fn, transform)
    >>> result = ps.fit(step, state, [{"x": mx.ones(1)}], callbacks=[jsonl(path)])
    >>> from pathlib import Path
    >>> Path(path).read_text()[:38]
    '{"step": 1, "loss": 1.0, "grad_norm": '
    """
    return Lines(check_path("jsonl", path))


def _time(progress: Progress) -> dict[str, float]:
    return {"seconds": round(progress.seconds, 3)}
