"""Watch a step from the loop, and keep the one that goes wrong."""

import math
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk.atomic import NotFlushedError
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.disk.tensors import check_storable
from purestep._checkpoint.run import directory as layout
from purestep._checkpoint.run import store
from purestep._checkpoint.run.record import LARGEST_STEP
from purestep._core import checks, sums, tree
from purestep._core.types import Batch, Metrics, Tree
from purestep._measures.difference import bit_pattern
from purestep._measures.finite import nonfinite_paths
from purestep._replay import bundle
from purestep._steps.compile import Compiled
from purestep._steps.state import check_arrays

# Up to this many elements arrays are added up together: each alone costs a kernel to start.
_SMALL = 1 << 12


class ReplayWarning(UserWarning):
    """A step gave something that is not finite, and was written to a bundle."""


class _Made(NamedTuple):
    """A step not looked at yet: its batch, its metrics, and a sum that is finite only if all of it is."""

    batch: Batch
    metrics: Metrics
    total: mx.array


class Recorder:
    """A step that writes a bundle when it goes wrong; made by `record`.

    Attributes:
        bundles: the bundles written so far.
    """

    def __init__(
        self,
        step: Callable[[Any, Batch], tuple[Any, Metrics]],
        root: str | os.PathLike[str],
        *,
        every: int,
        max_bundles: int,
        ignore: Collection[str],
        params: bool,
    ):
        self.bundles: list[Path] = []
        self._step, self._every, self._max, self._params = step, every, max_bundles, params
        self._ignore = frozenset(ignore)
        self._root = Path(root).absolute()
        self._lock = store.claim("replay.record", self._root)
        self._window: list[_Made] = []
        self._before: Tree = None  # the state before the window's first step
        self._after: Tree = None  # the state after its last
        self._calls = 0

    def __call__(self, state: Any, batch: Batch) -> tuple[Any, Metrics]:
        """Make a step; first look at the steps before, if `every` of them are waiting."""
        caller = "replay.record"
        check_arrays(caller, "batch", batch)
        if state is not self._after:  # otherwise it was looked at as the one before returned it
            check_arrays(caller, "state", state)
        if self._calls == 0:
            check_storable(caller, {"state": state, "batch": batch})
        if len(self._window) >= self._every or state is not self._after:
            self.check()
        after, metrics = self._step(state, batch)
        if type(metrics) is not dict:
            raise TypeError(f"{caller}: step must return (state, metrics), got {metrics!r} for metrics")
        check_arrays(caller, "metrics", metrics)
        check_arrays(caller, "the new state", after)
        self._calls += 1
        if len(self.bundles) >= self._max:
            return after, metrics
        total = _total(tree.leaves(self._watched(metrics, after)))
        # Started, not waited for. Without this the sum would hold on to the arrays it is made of.
        mx.async_eval([*tree.leaves((after, metrics)), total])
        if not self._window:
            self._before = state
        self._window.append(_Made(batch, metrics, total))
        self._after = after
        return after, metrics

    def check(self) -> Path | None:
        """Look at the steps not looked at yet; return the bundle written, if one went wrong.

        Waits for the device. Call it when the loop ends, or use the recorder as a context manager.
        """
        window, before, after = self._window, self._before, self._after
        self._window, self._before, self._after = [], None, None
        if not window:
            return None
        totals: Any = mx.stack([made.total for made in window]).tolist()
        if all(map(math.isfinite, totals)):
            return None
        return self._search(window, totals, before, after)

    def close(self) -> None:
        """Look at the last steps, and let another recorder use the directory."""
        try:
            self.check()
        finally:
            self._lock.release()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watched(self, metrics: Metrics, after: Tree) -> Tree:
        watched: dict[str, Any] = {
            "metrics": {name: value for name, value in metrics.items() if name not in self._ignore}
        }
        if self._params:
            watched["params"] = getattr(after, "params", after)
        return watched

    def _search(self, window: list[_Made], totals: list[float], before: Tree, last: Tree) -> Path | None:
        """Write the first bad step of a window; with several, the states on the way are made once more."""
        state = before
        for number, (made, total) in enumerate(zip(window, totals, strict=True)):
            after, metrics = (last, made.metrics) if len(window) == 1 else self._step(state, made.batch)
            # A sum of large numbers may be infinite alone: each array is looked at before anything is said.
            suspect = not math.isfinite(total)
            reason = tuple(nonfinite_paths(self._watched(made.metrics, after))) if suspect else ()
            if reason:
                if not _same(metrics, made.metrics):
                    warnings.warn(
                        "replay.record: the step gave other bits the second time, so the bundle's state is "
                        "not quite the one that went wrong: use every=1",
                        ReplayWarning,
                        stacklevel=4,
                    )
                return self._write(state, made, after, reason, self._calls - len(window) + number)
            state = after
            mx.eval(tree.leaves(state))
        return None

    def _write(self, state: Tree, made: _Made, after: Tree, reason: tuple[str, ...], count: int) -> Path:
        own: Any = getattr(state, "step", None)
        if isinstance(own, mx.array) and own.ndim == 0 and mx.issubdtype(own.dtype, mx.integer):
            number: Any = own.item()
            count = number if 0 <= number <= LARGEST_STEP else count
        fast = isinstance(self._step, Compiled)
        try:
            path = bundle.write(
                self._root, count, state, made.batch, made.metrics, after, reason, compiled=fast
            )
        except NotFlushedError as error:
            self.bundles.append(error.path)
            raise
        self.bundles.append(path)
        shown = ", ".join(reason[:4]) + (f" and {len(reason) - 4} more" if len(reason) > 4 else "")
        warnings.warn(
            f"replay.record: not finite after {count} steps: {shown}. See why with "
            f"python -m purestep replay {path} --step module:function",
            ReplayWarning,
            stacklevel=5,
        )
        return path


def record(
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    directory: str | os.PathLike[str],
    *,
    every: int = 1,
    max_bundles: int = 1,
    ignore: Collection[str] = (),
    params: bool = True,
) -> Recorder:
    """Wrap a step for the loop, so that one that goes wrong is kept: to the bit, ready to be run again.

    When a metric (`loss`, `grad_norm`, your own) or a new parameter is NaN or infinite, the state and batch
    before that step, the metrics it gave and what it ran on are written to a bundle below `directory`.
    Training goes on, with a `ReplayWarning`; `recorder.bundles` says in the loop what was written.

    What it costs: states are immutable, so keeping one is keeping a reference. Each call starts the step's
    evaluation and adds up the metrics and the new parameters, which reads every parameter once. The
    answer is read from the device at the next call, when a loop that evaluates each step has waited
    already. A loop that runs ahead of the device would wait there: with `every=k` it waits once in k
    steps, and one older state and k batches stay in memory; which of the k steps went wrong is found by
    making them again. (A state that is not the one that the call before returned is looked at on its own.)

    Args:
        step: `step(state, batch) -> (state, metrics)`, plain or compiled. The recorder itself is for the
            loop and is not to be compiled.
        directory: of the bundles, and of nothing else; made if need be. One recorder at a time uses it.
        every: look after so many steps.
        max_bundles: once so many are written, the recorder only passes the step on.
        ignore: metrics that may be infinite, such as a perplexity, or the `grad_norm` of a
            `loss_scaled_step`.
        params: look at the new parameters too (at the whole new state, if it has no `params`).

    Returns:
        A callable like `step`, to be used as a context manager or closed, so that the last steps are
        looked at too.

    Raises:
        ValueError: if the directory holds checkpoints.
        LockedError: if another recorder, or a Checkpointer, writes to it.
        OSError: if it cannot be written; from a later call, if a bundle cannot be.

    >>> import purestep as ps, tempfile
    >>> loss_fn = lambda params, batch, rng: mx.sqrt(params["w"] * batch["x"]).sum()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.ones(1)}, transform)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     with record(ps.train_step(loss_fn, transform), tempfile.mkdtemp()) as step:
    ...         for x in (1.0, 0.0, 1.0):
    ...             state, metrics = step(state, {"x": mx.array([x])})
    >>> [path.name for path in step.bundles]
    ['step_00000001']
    """
    caller = "replay.record"
    checks.function(caller, "step", step)
    if isinstance(step, Recorder):
        raise checks.error(caller, "step must be a step, got a recorder")
    every = checks.integer(caller, "every", every, least=1)
    max_bundles = checks.integer(caller, "max_bundles", max_bundles, least=1)
    if isinstance(ignore, str):
        raise TypeError(f"{caller}: ignore must be a list of names, got the string {ignore!r}")
    directory = check_path(caller, check_path(caller, directory).absolute())
    _check_own(caller, directory)
    return Recorder(step, directory, every=every, max_bundles=max_bundles, ignore=ignore, params=params)


def _check_own(caller: str, root: Path) -> None:
    """Refuse a directory of checkpoints: among them a bundle would be taken for one."""
    for entry in store.entries(root):
        try:
            manifest = layout.read(caller, entry)
        except ValueError:
            continue  # damaged: nobody can tell what it was
        if not bundle.is_bundle(manifest):
            raise checks.error(caller, f"{root} holds checkpoints: give bundles a directory of their own")


def _same(first: Metrics, second: Metrics) -> bool:
    return first.keys() == second.keys() and all(
        bool(mx.array_equal(bit_pattern(first[name]), bit_pattern(second[name])).item()) for name in first
    )


def _total(leaves: list[mx.array]) -> mx.array:
    """Return the sum of all elements, 0-d float32: no NaN or infinity leaves it finite, and it is cheap."""
    small, large = [], []
    for leaf in leaves:
        if not mx.issubdtype(leaf.dtype, mx.inexact):
            continue
        # Half precision could not hold the sums of sound parameters.
        whole = (mx.abs(leaf) if leaf.dtype == mx.complex64 else leaf).astype(mx.float32)
        if leaf.size > _SMALL:
            large.append(sums.total(whole).reshape(1))
        else:
            small.append(whole.reshape(-1))
    return sums.total(mx.concatenate(small + large)) if small or large else mx.array(0.0)
