"""`csv`: the rows of a run as a table in a text file."""

import csv as library
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.disk.naming import check_path
from purestep._core.escaping import printable
from purestep._loop.callbacks.output import append_line, begin_file
from purestep._loop.trackers.tracker import EVALUATIONS, ROWS, Opening, Tracker


def line_of(cells: Sequence[Any]) -> str:
    """Return cells as one line of CSV, without its end.

    >>> line_of(["step", "a,b", 1.5, None])
    'step,"a,b",1.5,'
    """
    text = io.StringIO()
    library.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


class Table(Tracker):
    """Appends rows to a CSV file; `csv` makes it."""

    name = "csv"
    threaded = False

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._columns: list[str] = []

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Prepare the file: drop the rows of later steps, or move the file of another run away."""
        known = opening.start > 0 and self.path.is_file() and self.path.stat().st_size > 0
        if known:
            text = self.path.read_bytes()
            self.path.write_bytes(text[: text.rfind(b"\n") + 1])  # a crash may have cut the last line short
        begin_file(self.path, opening.start, lambda line: _belongs(line, opening.start))
        self._columns = _columns(self.path)
        return {ROWS: opening.start, EVALUATIONS: opening.start} if known and self._columns else {}

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Append a row; if it has new columns, write the file anew with a longer header."""
        row = {"step": step, **figures}
        if not self._columns or any(name not in self._columns for name in row):
            before = self._columns
            self._columns = [*before, *(name for name in row if name not in before)]
            lines = self.path.read_text().split("\n")[1:-1] if before else []
            padded = [line + "," * (len(self._columns) - len(before)) for line in lines]
            text = "".join(f"{line}\n" for line in [line_of(self._columns), *padded])
            atomic.write_text(self.path, text)
        append_line(self.path, line_of([row.get(name) for name in self._columns]))

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Append a row with the texts, separated by spaces, and control characters escaped."""
        self.write(EVALUATIONS, step, {name: printable(" ".join(texts))})


def _belongs(line: bytes, step: int) -> bool:
    """Tell whether a line is the header or a row of a step up to this one."""
    first = line.partition(b",")[0]
    return first == b"step" or (first.isdigit() and int(first[:20]) <= step)


def _columns(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(library.reader(file), [])


def csv(path: str | os.PathLike[str]) -> Tracker:
    """Append each row and each evaluation to a CSV file, whose first line names the columns.

    The first column is `step`; cells that a row does not have are empty. A figure that appears later becomes
    a column at the end. A resumed run first drops the rows of steps that it will repeat. If a new run finds a
    file, the file is renamed to `NAME.before`. It needs no extra.

    Args:
        path: the file; its directory is created.

    >>> import mlx.core as mx, purestep as ps, tempfile
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> path = tempfile.mkdtemp() + "/metrics.csv"
    >>> step = ps.train_step(loss_fn, transform)
    >>> result = ps.fit(step, state, [{"x": mx.ones(1)}], callbacks=[csv(path)])
    >>> from pathlib import Path
    >>> Path(path).read_text().splitlines()[0]
    'step,loss,grad_norm,learning_rate,seconds,epoch,samples,tokens'
    """
    return Table(check_path("csv", path))
