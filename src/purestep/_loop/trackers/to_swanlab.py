"""`swanlab`: the rows of a run in SwanLab."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._loop.trackers.hosted import Hosted
from purestep._loop.trackers.settings import options_of
from purestep._loop.trackers.tracker import Opening, Tracker

_STATES = {"finished": "success", "interrupted": "aborted", "failed": "crashed"}


class SwanLab(Hosted):
    """Logs to SwanLab; `swanlab` makes it."""

    name = "swanlab"

    def begin(self, opening: Opening) -> Any:
        """Begin a run, or continue the one with this id."""
        return self._library.init(
            log_dir=str(self.directory),
            id=opening.run_id,
            config={k: "None" if v is None else v for k, v in opening.config.items()},
            resume="allow" if opening.resumed else "never",
            **self._given,
        )

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Log the texts."""
        self._run.log({name: [self._library.Text(text) for text in texts]}, step=step)

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Log the path as a text: SwanLab stores no artefacts."""
        self._run.log({"checkpoint": self._library.Text(str(path.absolute()))}, step=step)

    def close(self, status: str) -> None:
        """Finish the run."""
        error = "the run failed" if status == "failed" else None
        self._run.finish(state=_STATES[status], error=error)


def swanlab(
    directory: str | os.PathLike[str],
    *,
    project: str | None = None,
    name: str | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: Any = None,
    pictures: Iterable[Any] = (),
    checkpoints: Checkpointer | None = None,
    wait: float = 60.0,
) -> Tracker:
    """Record a run in SwanLab.

    Of checkpoints only the path is recorded. A run that is resumed continues under the same id; steps that it
    repeats are not logged again, offline neither. Log in before the run: `swanlab login`. SwanLab has one run
    per process at a time.

    Args:
        directory: for SwanLab's files.
        project: the name of the project.
        name: the name of the run.
        mode: `online`, `local`, `offline` or `disabled`; `None` leaves it to SwanLab's settings.
        options: further arguments of `swanlab.init`, such as `workspace`, `group` and `tags`.
        config: as for `Tracker`.
        pictures: as for `Tracker`.
        checkpoints: as for `Tracker`.
        wait: as for `Tracker`, in seconds.

    Raises:
        ImportError: without swanlab or pillow: `pip install 'purestep[swanlab]'`.
        ValueError: if an option is one that the tracker sets.

    >>> make = lambda: swanlab("run", project="small", mode="offline", config={"seed": 0})
    """
    own = ("log_dir", "id", "config", "resume", "project", "name", "mode")
    given = {**options_of("swanlab", options, own), "project": project, "name": name, "mode": mode}
    shared = {"config": config, "pictures": pictures, "checkpoints": checkpoints, "wait": wait}
    return SwanLab(check_path("swanlab", directory), given, **shared)
