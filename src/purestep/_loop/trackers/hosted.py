"""`Hosted`: what trackers share whose library logs figures and images of a run by step."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purestep._loop.core.extras import load
from purestep._loop.trackers import marks
from purestep._loop.trackers.images import Picture
from purestep._loop.trackers.tracker import Opening, Tracker


class Hosted(Tracker):
    """Logs with a library of the tracker's own name. Override `begin`, and further methods of `Tracker`.

    Offline, such a library cannot tell how far it has recorded a run: a small file in the directory does.
    """

    def __init__(self, directory: Path, given: Mapping[str, Any], **options: Any):
        super().__init__(**options)
        self.directory, self._given = directory, given
        self._library = load(self.name, self.name, self.name)
        self._images = load(self.name, "PIL.Image", self.name)
        self._run: Any = None
        self._mark = directory

    def begin(self, opening: Opening) -> Any:
        """Return the library's run: a new one, or the one with this id."""
        raise NotImplementedError

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Begin a run, or continue the one with this id."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._run = self.begin(opening)
        self._mark = marks.path_of(self.directory, opening.run_id)
        return marks.read(self._mark) if opening.resumed else {}

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures."""
        self._run.log(dict(figures), step=step)

    def write_picture(self, step: int, name: str, picture: Picture) -> None:
        """Log the picture."""
        image = self._images.open(io.BytesIO(picture.png))
        self._run.log({name: self._library.Image(image)}, step=step)

    def recorded(self, steps: Mapping[str, int]) -> None:
        """Write the mark."""
        marks.write(self._mark, steps)
