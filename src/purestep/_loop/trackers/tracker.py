"""`Tracker`: the callback that all trackers are, and what an adapter of a library overrides."""

import re
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._core import checks
from purestep._core.escaping import encodable, printable
from purestep._loop.callbacks.lines import row_of
from purestep._loop.callbacks.output import MetricsWarning
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.progress import Progress, Run, Stop
from purestep._loop.trackers.images import Picture, picture_of
from purestep._loop.trackers.settings import flat
from purestep._loop.trackers.worker import Job, Worker

ROWS, EVALUATIONS = "rows", "evaluations"
_LONGEST = 1e6  # seconds to wait; a thread cannot wait for much longer than a century
_IDS = re.compile("[0-9a-f]{32}")


class Opening(NamedTuple):
    """The run that a tracker opens.

    >>> Opening("0f3c", resumed=False, start=0, config={"seed": 0}).start
    0

    Attributes:
        run_id: 32 hexadecimal digits. It is stored with each checkpoint, so a resumed run has the same.
        resumed: whether an earlier part of the run was tracked under this id.
        start: steps made before.
        config: the hyperparameters, by dotted names.
    """

    run_id: str
    resumed: bool
    start: int
    config: dict[str, Any]


class Tracker(Metered):
    """Records a run in another program. Inherit from it and override `open`, `write` and others.

    All methods to override are called one after the other, on one thread that is not the loop's. The loop
    never waits for them but at the end of the run. If one raises, there is one `MetricsWarning`, and training
    goes on. If `open` raises, nothing else is called.

    A run that is resumed has the id of the first one. `open` returns how far the tracker has recorded it:
    rows up to these steps are not written again, and those after them that the checkpoint's history holds
    are written before new ones.

    >>> class Listed(Tracker):
    ...     def open(self, opening):
    ...         self.rows = []
    ...     def write(self, kind, step, figures):
    ...         self.rows.append((kind, step, figures["loss"]))
    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step, tracker = ps.train_step(loss_fn, transform), Listed(config={"seed": 0})
    >>> result = ps.fit(step, state, [{"x": mx.ones(1)}], callbacks=[tracker])
    >>> tracker.rows
    [('rows', 1, 1.0)]

    Args:
        config: the hyperparameters: a `TrainConfig`, or a mapping of names to plain values or mappings.
        pictures: paths of PNG files that other callbacks draw, such as `plots`. Each is recorded after an
            evaluation and at the end, if it has changed. Put those callbacks first in the list.
        checkpoints: the checkpointer whose newest and best checkpoint are recorded at the end of the run.
        wait: the most seconds that the end of the run waits until all is written.

    Attributes:
        name: of the tracker, for warnings.
        threaded: whether the methods are called on a thread of their own.
    """

    name = "tracker"
    threaded = True

    def __init__(
        self,
        *,
        config: Any = None,
        pictures: Iterable[Any] = (),
        checkpoints: Checkpointer | None = None,
        wait: float = 60.0,
    ):
        super().__init__()
        caller = self.name
        if isinstance(pictures, (str, bytes)) or not isinstance(pictures, Iterable):
            raise TypeError(f"{caller}: pictures must be a list of paths, got {checks.shown(pictures):.80}")
        if checkpoints is not None and not isinstance(checkpoints, Checkpointer):
            shown = checks.shown(checkpoints)
            raise TypeError(f"{caller}: checkpoints must be a ps.checkpoint.Checkpointer, got {shown:.80}")
        self._config = flat(caller, config)
        self._pictures = [check_path(caller, path) for path in pictures]
        self._checkpoints = checkpoints
        self._wait = checks.number(caller, "wait", wait, least=0, most=_LONGEST)
        self._id, self._restored = uuid.uuid4().hex, False
        self._worker: Worker | None = None
        self._left: Worker | None = None  # of an earlier run; its jobs may not have ended
        self._recorded: dict[str, int] = {}
        self._drawn: dict[Path, int] = {}
        self._step, self._opened, self._warned = 0, False, False

    # What an adapter overrides

    def open(self, opening: Opening) -> Mapping[str, int] | None:
        """Begin or continue the run; return the last recorded step of `rows` and `evaluations`."""

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Record a row: the figures of a step, if the kind is `rows`, or of `evaluations`."""

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Record texts that an evaluation made."""

    def write_picture(self, step: int, name: str, picture: Picture) -> None:
        """Record a picture."""

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Record a checkpoint, a directory of files."""

    def recorded(self, steps: Mapping[str, int]) -> None:
        """Remember for a resumed run how far each kind of row is recorded."""

    def flush(self) -> None:
        """Hand everything to the disk or the network. Called after each checkpoint, and at the end."""

    def close(self, status: str) -> None:
        """End the run: `finished`, `interrupted` or `failed`."""

    # What a user calls

    def picture(self, name: str, image: Any) -> None:
        """Record a picture of the current step.

        Args:
            name: its name.
            image: the path of a PNG file, its bytes, or an array of shape `[height, width]` or
                `[height, width, channels]`: uint8, or floating in [0, 1].

        Raises:
            ValueError: if it is no such picture.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"{self.name}: name must be a string, got {checks.shown(name):.80}")
        picture = picture_of(self.name, image)
        self._post(partial(self.write_picture, self._step, printable(name), picture))

    # The hooks

    def on_train_begin(self, run: Run) -> Stop | None:
        """Open the tracker; write the rows of the history that it lacks."""
        super().on_train_begin(run)
        resumed, self._restored = self._restored, False
        if not resumed:
            self._id = uuid.uuid4().hex
        self._step, self._warned, self._drawn = run.start, False, {}
        opening = Opening(self._id, resumed, run.start, dict(self._config))
        rows = list(run.history) if run.start else []
        evaluated = frozenset(run.history.evaluated_names)
        self._worker = Worker(self.name, threaded=self.threaded, after=self._left)
        self._worker.post(lambda: self._open(opening, rows, evaluated))

    def on_step_end(self, progress: Progress) -> None:
        """Record a row."""
        super().on_step_end(progress)
        self._step = progress.step
        if progress.row is not None:
            row = row_of(progress, {**progress.row, **self.rates})
            self._post(partial(self._write, ROWS, progress.step, row, {}))
            self._warn()

    def on_eval_end(self, progress: Progress) -> None:
        """Record the figures and texts of an evaluation, and pictures."""
        texts = {name: list(each) for name, each in progress.texts.items()}
        self._post(partial(self._write, EVALUATIONS, progress.step, dict(progress.evaluated or {}), texts))
        self._post_pictures()
        super().on_eval_end(progress)

    def on_checkpoint(self, progress: Progress) -> None:
        """Flush what is recorded."""
        self._post(self.flush)
        super().on_checkpoint(progress)

    def on_train_end(self, result: Any) -> None:
        """Record the last pictures and checkpoints, end the run, and wait until all is written."""
        worker = self._worker
        if worker is None:
            return
        self._post_pictures()
        if self._checkpoints is not None:
            for step, path in self._kept(self._checkpoints):
                self._post(partial(self.write_checkpoint, step, path))
        failed = result.reason.startswith("error:")
        status = "failed" if failed else "interrupted" if result.reason == "signal" else "finished"
        self._left = worker
        try:
            complete = worker.finish(partial(self._close, status), self._wait)
            self._warn()
        finally:  # Ctrl-C may end the wait
            self._worker = None
        if not complete:
            message = f"{self.name}: not all is written after {self._wait:g} seconds; the run ends without it"
            warnings.warn(message, MetricsWarning, stacklevel=2)

    def state(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {"run": self._id}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue under the id of the run that is resumed."""
        found = saved.get("run")
        if isinstance(found, str) and _IDS.fullmatch(found):  # it becomes part of paths and queries
            self._id, self._restored = found, True

    # On the thread

    def _open(self, opening: Opening, rows: list[dict[str, float]], evaluated: frozenset[str]) -> None:
        self._opened = False
        self._recorded = {ROWS: -1, EVALUATIONS: -1, **(self.open(opening) or {})}
        self._opened = True
        for row in rows:
            figures = {name: value for name, value in row.items() if name != "step"}
            kind = EVALUATIONS if evaluated and evaluated.issuperset(figures) else ROWS
            self._write(kind, int(row["step"]), figures, {})

    def _write(
        self, kind: str, step: int, figures: Mapping[str, Any], texts: Mapping[str, Sequence[str]]
    ) -> None:
        if step <= self._recorded[kind]:
            return
        named = {printable(name): value for name, value in figures.items() if name != "step"}
        if named:
            self.write(kind, step, named)
        self._recorded[kind] = step
        try:
            for name, each in texts.items():
                self.write_texts(step, printable(name), [encodable(text, "utf-8") for text in each])
        finally:  # a text that is refused must not repeat the figures in a resumed run
            self.recorded(self._recorded)

    def _close(self, status: str) -> None:
        if self._opened:
            try:
                self.flush()
            finally:
                self.close(status)

    # On the loop's thread

    def _post(self, job: Job) -> None:
        if self._worker is not None:
            self._worker.post(lambda: job() if self._opened else None)

    def _post_pictures(self) -> None:
        for path in self._pictures:
            try:
                changed = path.stat().st_mtime_ns
                if self._drawn.get(path) == changed:
                    continue
                picture = picture_of(self.name, path)
            except (OSError, ValueError):  # not drawn yet, or only in part
                continue
            self._drawn[path] = changed
            self._post(partial(self.write_picture, self._step, printable(path.stem), picture))

    def _kept(self, checkpointer: Checkpointer) -> list[tuple[int, Path]]:
        """Return the newest and the best checkpoint."""
        try:
            found = [checkpointer.latest(), checkpointer.best() if checkpointer.metric else None]
        except (OSError, ValueError):
            return []
        kept = {record.step: record.path for record in found if record is not None}
        return sorted(kept.items())

    def _warn(self) -> None:
        worker = self._worker
        if worker is None or self._warned or not (worker.failure or worker.dropped):
            return
        self._warned = True
        error = worker.failure
        reason = "too many entries are waiting, some are dropped"
        if error is not None:
            reason = f"{type(error).__name__}: {error}".strip(": ")[:500]
        message = f"{self.name}: the tracker failed, training goes on: {reason}"
        warnings.warn(message, MetricsWarning, stacklevel=2)
