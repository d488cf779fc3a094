"""`swanlab`: the rows of a run in SwanLab."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._loop.core.extras import load
from purestep._loop.trackers import marks
from purestep._loop.trackers.images import Picture
from purestep._loop.trackers.settings import options_of
from purestep._loop.trackers.tracker import Opening, Tracker

_STATES = {"finished": "success", "interrupted": "aborted", "failed": "crashed"}


class SwanLab(Tracker):
    """Logs to SwanLab; `swanlab` makes it."""

    name = "swanlab"

    def __init__(self, directory: Path, given: Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self.directory, self._given = directory, given
        self._library = load(self.name, "swanlab", "swanlab")
        self._images = load(self.name, "PIL.Image", "swanlab")
        self._run: Any = None
        self._mark = directory

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Begin a run, or continue the one with this id."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._run = self._library.init(
            log_dir=str(self.directory),
            id=opening.run_id,
            config={k: "None" if v is None else v for k, v in opening.config.items()},
            resume="allow" if opening.resumed else "never",
            **self._given,
        )
        self._mark = self.directory / f"purestep-{opening.run_id}.json"
        return marks.read(self._mark) if opening.resumed else {}

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures."""
        self._run.log(dict(figures), step=step)

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Log the texts."""
        self._run.log({name: [self._library.Text(text) for text in texts]}, step=step)

    def write_picture(self, step: int, name: str, picture: Picture) -> None:
        """Log the picture."""
        image = self._images.open(io.BytesIO(picture.png))
        self._run.log({name: self._library.Image(image)}, step=step)

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Log the path as a text: SwanLab stores no artefacts."""
        self._run.log({"checkpoint": self._library.Text(str(path.absolute()))}, step=step)

    def recorded(self, steps: Mapping[str, int]) -> None:
        """Write the mark."""
        marks.write(self._mark, steps)

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
