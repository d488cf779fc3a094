"""`sampler`: text that the model writes while it is trained."""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks
from purestep._core.escaping import printable
from purestep._loop.callbacks.output import Guarded, append_line, begin_file, print_line
from purestep._loop.core.progress import Callback, Progress, Run

_STEP = re.compile(rb"step (\d+)  ")


def belongs(line: bytes, step: int) -> bool:
    """Tell whether a line is not a sample of a step after this one.

    >>> belongs(b"step 4  a text", 4), belongs(b"step 6  a text", 4)
    (True, False)
    """
    found = _STEP.match(line)
    return found is None or int(found[1]) <= step


class Sampler(Callback):
    """Writes samples; `sampler` makes it."""

    def __init__(self, sample: Callable[[Any], Any], every: int, path: Path | None):
        self._sample, self._every, self._path = sample, every, path
        write = print_line if path is None else partial(append_line, path)
        self._write = Guarded("sampler", path or "standard output", write)

    def on_train_begin(self, run: Run) -> None:
        """Prepare the file: drop the samples of later steps, or move the file of another run away."""
        if self._path is not None:
            begin_file(self._path, run.start, partial(belongs, step=run.start))

    def on_step_end(self, progress: Progress) -> None:
        """At every n-th step, print or append what the model writes."""
        if progress.step % self._every:
            return
        found = self._sample(progress.state)
        texts = [found] if isinstance(found, str) else found
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"sampler: sample must return a string or strings, got {checks.shown(found)}")
        for text in texts:
            self._write(f"step {progress.step}  {printable(text)}")


def sampler(
    sample: Callable[[Any], Any], *, every: int, path: str | os.PathLike[str] | None = None
) -> Sampler:
    """Print what a model writes, every `every` steps.

    Args:
        sample: a function of the state that returns a string, or several. Draw with a key that is a function
            of the state, such as `ps.rng.fold_in(state.rng, 1)`, so that a resumed run writes the same.
        every: steps, at least 1.
        path: a file to append to, instead of printing. A resumed run first drops the samples of steps that it
            will repeat. If a new run finds a file, the file is renamed to `NAME.before`.

    Control characters are escaped. If the file or standard output cannot be written, there is one
    `MetricsWarning`, and training goes on.

    An `Evaluation` with such a function does the same and hands the texts to all callbacks.

    >>> callback = sampler(lambda state: f"step {state.step.item()}", every=500)
    """
    checks.function("sampler", "sample", sample)
    every = checks.integer("sampler", "every", every, least=1)
    return Sampler(sample, every, None if path is None else check_path("sampler", path))
