"""`sampler`: text that the model writes while it is trained."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks
from purestep._core.escaping import printable
from purestep._loop.core.progress import Callback, Progress


class Sampler(Callback):
    """Writes samples; `sampler` makes it."""

    def __init__(self, sample: Callable[[Any], Any], every: int, path: Path | None):
        self._sample, self._every, self._path = sample, every, path

    def on_step_end(self, progress: Progress) -> None:
        """At every n-th step, print or append what the model writes."""
        if progress.step % self._every:
            return
        found = self._sample(progress.state)
        texts = [found] if isinstance(found, str) else list(found)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"sampler: sample must return a string or strings, got {checks.shown(found)}")
        lines = [f"step {progress.step}  {printable(text)}" for text in texts]
        if self._path is None:
            print("\n".join(lines), flush=True)
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)


def sampler(
    sample: Callable[[Any], Any], *, every: int, path: str | os.PathLike[str] | None = None
) -> Sampler:
    """Print what a model writes, every `every` steps.

    Args:
        sample: a function of the state that returns a string, or several. Draw with a key that is a function
            of the state, such as `ps.rng.fold_in(state.rng, 1)`, so that a resumed run writes the same.
        every: steps, at least 1.
        path: a file to append to, instead of printing. Control characters are escaped.

    An `Evaluation` with such a function does the same and hands the texts to all callbacks.

    >>> callback = sampler(lambda state: f"step {state.step.item()}", every=500)
    """
    checks.function("sampler", "sample", sample)
    every = checks.integer("sampler", "every", every, least=1)
    return Sampler(sample, every, None if path is None else check_path("sampler", path))
