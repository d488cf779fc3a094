"""`tensorboard`: the rows of a run as TensorBoard's event files."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._core.escaping import printable
from purestep._loop.callbacks.output import free
from purestep._loop.core.extras import load
from purestep._loop.trackers import marks
from purestep._loop.trackers.images import Picture
from purestep._loop.trackers.tracker import EVALUATIONS, ROWS, Opening, Tracker

_FILES = "events.out.tfevents.*"
_LARGEST = 2**1023  # of an integer that is a number for TensorBoard


class TensorBoard(Tracker):
    """Writes event files; `tensorboard` makes it."""

    name = "tensorboard"

    def __init__(self, directory: Path, **options: Any):
        super().__init__(**options)
        self.directory = directory
        # The package's own writer: it needs neither TensorFlow nor torch, as `tensorboardX` and torch's do.
        parts = "summary.writer.event_file_writer compat.proto.event_pb2 compat.proto.summary_pb2"
        parts += " compat.proto.tensor_pb2 plugins.text.metadata plugins.hparams.plugin_data_pb2"
        loaded = [load(self.name, f"tensorboard.{part}", "tensorboard") for part in parts.split()]
        self._files, self._events, self._summaries, self._tensors, self._text, self._hparams = loaded
        self._writer: Any = None
        self._mark, self._steps = directory, dict[str, int]()

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Begin a file. Rows of later steps in older files are hidden; files of another run are moved."""
        older = sorted(self.directory.glob(_FILES))
        if older and not opening.start:
            self._move(older)
        self._mark, self._steps = marks.path_of(self.directory, opening.run_id), {}
        if older and opening.start:
            _wait_for_next(older)
            self._writer = self._files.EventFileWriter(str(self.directory))
            known = min(opening.start, max(marks.read(self._mark).values(), default=-1))
            # Readers drop what they have read of this step and later ones.
            log = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(max(known, 0) + 1, session_log=log)
            return {ROWS: known, EVALUATIONS: known}
        self._writer = self._files.EventFileWriter(str(self.directory))
        if opening.config:
            self._configure(opening.config)
        return {}

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures as scalars."""
        value = self._summaries.Summary.Value
        self._summarize(step, [value(tag=name, simple_value=float(f)) for name, f in figures.items()])

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Add the texts, as they are, in TensorBoard's tab of texts."""
        self._summarize(step, [self._texts(name, ["    " + text.replace("\n", "\n    ") for text in texts])])

    def write_picture(self, step: int, name: str, picture: Picture) -> None:
        """Add the picture."""
        image = self._summaries.Summary.Image(
            height=picture.height, width=picture.width, colorspace=4, encoded_image_string=picture.png
        )
        self._summarize(step, [self._summaries.Summary.Value(tag=name, image=image)])

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Add the path as a text: TensorBoard stores no files."""
        self._summarize(step, [self._texts("checkpoint", [str(path.absolute())])])

    def recorded(self, steps: Mapping[str, int]) -> None:
        """Remember the steps for the next mark."""
        self._steps = dict(steps)

    def flush(self) -> None:
        """Flush the file; then mark how far it goes: before that, a crash may lose rows."""
        self._writer.flush()
        if self._steps:
            marks.write(self._mark, self._steps)

    def close(self, status: str) -> None:
        """Close the file."""
        self._writer.close()

    def _move(self, older: Sequence[Path]) -> None:
        """Move files to a directory beside this one, which may hold other things."""
        place = free(self.directory.absolute())
        place.mkdir()
        for path in older:
            path.replace(place / path.name)

    def _configure(self, config: Mapping[str, Any]) -> None:
        """Add the hyperparameters: as a text, and for the tab of hyperparameters."""
        plain = {name: _setting(value) for name, value in config.items()}
        rows = [f"| {_cell(name)} | `{_cell(value)}` |" for name, value in plain.items()]
        lines = ["| name | value |", "|---|---|", *rows]
        start = self._hparams.SessionStartInfo(start_time_secs=time.time())
        for name, value in plain.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = float(value)
        content = self._hparams.HParamsPluginData(version=0, session_start_info=start).SerializeToString()
        metadata = self._summaries.SummaryMetadata(
            plugin_data=self._summaries.SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        )
        null = self._tensors.TensorProto(dtype=1, float_val=[0.0])
        null.tensor_shape.SetInParent()
        tag = "_hparams_/session_start_info"
        session = self._summaries.Summary.Value(tag=tag, metadata=metadata, tensor=null)
        self._summarize(0, [self._texts("config", ["\n".join(lines)]), session])

    def _texts(self, name: str, texts: Sequence[str]) -> Any:
        tensor = self._tensors.TensorProto(dtype=7, string_val=[text.encode() for text in texts])
        tensor.tensor_shape.dim.add(size=len(texts))
        metadata = self._text.create_summary_metadata(display_name="", description="")
        return self._summaries.Summary.Value(tag=name, metadata=metadata, tensor=tensor)

    def _summarize(self, step: int, values: list[Any]) -> None:
        self._add(step, summary=self._summaries.Summary(value=values))

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **what))


def _wait_for_next(older: Sequence[Path]) -> None:
    """Wait until this second is over if a file begins in it: readers sort files by the second in the name."""
    seconds = [path.name.split(".")[3] for path in older]
    if str(now := int(time.time())) in seconds:
        time.sleep(max(0.0, now + 1 - time.time()))


def _setting(value: Any) -> bool | int | float | str:
    plain = isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < _LARGEST)
    return value if plain else str(value)


def _cell(value: Any) -> str:
    """Return text that stays within its cell of a table in Markdown."""
    return printable(value).replace("|", "&#124;").replace("`", "'")


def tensorboard(
    directory: str | os.PathLike[str],
    *,
    config: Any = None,
    pictures: Iterable[Any] = (),
    checkpoints: Checkpointer | None = None,
    wait: float = 60.0,
) -> Tracker:
    """Record a run for TensorBoard: `tensorboard --logdir DIRECTORY`.

    Rows and evaluations become scalars, texts of evaluations and hyperparameters texts. Of checkpoints only
    the path is recorded. A resumed run continues in the same directory; rows of steps that it repeats are
    hidden. If a new run finds event files, they are moved to the directory `NAME.before`.

    Args:
        directory: for the event files of this run alone.
        config: as for `Tracker`.
        pictures: as for `Tracker`.
        checkpoints: as for `Tracker`.
        wait: as for `Tracker`, in seconds.

    Raises:
        ImportError: without tensorboard: `pip install 'purestep[tensorboard]'`.

    >>> make = lambda: tensorboard("run/tensorboard", config={"seed": 0})
    """
    options = {"config": config, "pictures": pictures, "checkpoints": checkpoints, "wait": wait}
    return TensorBoard(check_path("tensorboard", directory), **options)
