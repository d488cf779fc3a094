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
        lines = _lines(self.path) if opening.start else []
        if not lines:
            begin_file(self.path, 0, bool)  # a file that is not such a table is moved, too
            self._columns = []
            return {}
        self._columns = next(library.reader(lines[:1]))
        kept = [line for line in lines[1:] if 0 <= _step(line) <= opening.start]
        atomic.write_text(self.path, "".join(f"{line}\n" for line in [lines[0], *kept]))
        last = max(map(_step, kept), default=-1)
        return {ROWS: last, EVALUATIONS: last}

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Append a row; if it has new columns, write the file anew with a longer header."""
        row = {"step": step, **figures}
        if not self.path.exists():  # someone has moved it: begin another one
            self._columns = []
        if not self._columns or any(name not in self._columns for name in row):
            before = self._columns
            self._columns = [*before, *(name for name in row if name not in before)]
            lines = _lines(self.path)[1:] if before else []
            padded = [line + "," * (len(self._columns) - len(before)) for line in lines]
            text = "".join(f"{line}\n" for line in [line_of(self._columns), *padded])
            atomic.write_text(self.path, text)
        append_line(self.path, line_of([row.get(name) for name in self._columns]))

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Append a row with the texts, separated by spaces, and control characters escaped."""
        self.write(EVALUATIONS, step, {name: printable(" ".join(texts))})


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a table, whose first is its header; none if the file is no such table.

    A crash may have cut the last line short.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().decode(errors="backslashreplace").split("\n")[:-1]
    return lines if lines and lines[0].partition(",")[0] == "step" else []


def _step(line: str) -> int:
    """Return the step of a row, or -1 if it is no row."""
    first = line.partition(",")[0]
    return int(first) if first.isascii() and first.isdigit() and len(first) < 20 else -1


def csv(path: str | os.PathLike[str]) -> Tracker:
    """Append each row and each evaluation to a CSV file, whose first line names the columns.

    The first column is `step`; cells that a row does not have are empty. A figure that appears later becomes
    a column at the end. A resumed run first drops the rows of steps that it will repeat. If a new run finds a
    file, or a resumed one a file that is not such a table, the file is renamed to `NAME.before`. It needs no
    extra.

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
