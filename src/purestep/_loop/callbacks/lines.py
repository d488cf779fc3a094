"""`jsonl`: the rows of a run in a file of JSON lines."""

import json
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._loop.callbacks.output import Guarded, append_line, begin_file
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.progress import Progress, Run


def encoded(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON. NaN and infinities become null, since JSON has no such numbers.

    >>> encoded({"step": 1, "loss": float("nan")})
    '{"step": 1, "loss": null}'
    """
    sound = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(sound, ensure_ascii=True)


def belongs(line: bytes, step: int) -> bool:
    """Tell whether a line is a row of a step up to this one. A line that a crash cut short is not.

    >>> belongs(b'{"step": 1}', 1), belongs(b'{"step": 2}', 1), belongs(b'{"st', 1)
    (True, False, False)
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step


def row_of(progress: Progress, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a step: its number, then the figures, then the counts of the run.

    A metric that has the name of a count, such as `tokens`, replaces the count.
    """
    counts = {"epoch": progress.epoch, "samples": progress.samples, "tokens": progress.tokens}
    row = {"step": progress.step, **figures, "seconds": round(progress.seconds, 3)}
    if progress.evaluated is None:
        row = {**row, **counts}
    return {**row, **figures, "step": progress.step}


class Lines(Metered):
    """Appends rows to a file; `jsonl` makes it."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._write = Guarded("jsonl", path, partial(append_line, path))

    def on_train_begin(self, run: Run) -> None:
        """Prepare the file: drop the rows of later steps, or move the file of another run away."""
        super().on_train_begin(run)
        begin_file(self.path, run.start, partial(belongs, step=run.start))

    def on_step_end(self, progress: Progress) -> None:
        """Append a row."""
        super().on_step_end(progress)
        if progress.row is not None:
            self._write(encoded(row_of(progress, {**progress.row, **self.rates})))

    def on_eval_end(self, progress: Progress) -> None:
        """Append the figures and texts of an evaluation."""
        self._write(encoded(row_of(progress, {**(progress.evaluated or {}), **progress.texts})))
        super().on_eval_end(progress)


def jsonl(path: str | os.PathLike[str]) -> Lines:
    """Append each row and each evaluation to a file, one JSON object a line.

    A row has `step`, the metrics, `steps_per_second` and so on, `epoch`, `samples`, `tokens` and `seconds`.
    A metric of the name of a count replaces the count. NaN and infinities are written as null. A resumed run
    first drops the rows of steps that it will repeat. If a new run finds a file, the file is renamed to
    `NAME.before`, or to `NAME.before-2` and so on. On a full disk there is one `MetricsWarning`, and training
    goes on; rows are whole or absent.

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
