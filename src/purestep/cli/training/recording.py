"""The files of a run of `train`: figures and samples, as callbacks."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._loop.core.progress import Callback, Progress, Run

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"


class Recorder(Callback):
    """Writes each row of figures to `metrics.jsonl` and each sample to `samples.txt`.

    A resumed run begins with the rows of the steps before its checkpoint.
    """

    def __init__(self, directory: Path):
        self._metrics, self._samples = directory / METRICS, directory / SAMPLES
        self.sample: str | None = None

    def on_train_begin(self, run: Run) -> None:
        """Write the rows of the history."""
        atomic.write_text(self._metrics, "".join(map(_line, run.history)))

    def on_step_end(self, progress: Progress) -> None:
        """Append a row of figures."""
        if progress.row is not None:
            self._append(self._metrics, _line({"step": progress.step, **progress.row}))

    def on_eval_end(self, progress: Progress) -> None:
        """Append the figures of an evaluation, and samples."""
        if progress.evaluated:
            self._append(self._metrics, _line({"step": progress.step, **progress.evaluated}))
        for text in progress.texts.get("sample", ()):
            self.sample = text
            self._append(self._samples, f"--- after step {progress.step}\n{text}\n")

    def _append(self, path: Path, text: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:  # that of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from error


def _line(row: Mapping[str, Any]) -> str:
    names = ["step", *sorted(row.keys() - {"step"})]  # a resumed run writes the same lines
    plain = {name: row[name] if math.isfinite(row[name]) else repr(row[name]) for name in names}
    return json.dumps(plain) + "\n"
