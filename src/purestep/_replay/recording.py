"""Watch a step in the loop, and keep the first one with a NaN or an infinity."""

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
from purestep._checkpoint.run.arguments import LARGEST_STEP
from purestep._core import checks, sums, tree
from purestep._core.types import Batch, Metrics, Tree
from purestep._measures.difference import bit_pattern
from purestep._measures.finite import nonfinite_paths
from purestep._replay import bundle
from purestep._steps.compile import Compiled
from purestep._steps.state import check_arrays

# Arrays of up to this many elements are joined before they are summed, to save kernels.
_SMALL = 1 << 12


class ReplayWarning(UserWarning):
    """A step gave a NaN or an infinity and was written to a bundle."""


class _Made(NamedTuple):
    """An unchecked step: its batch, its metrics, and a sum that is finite only if all values are."""

    batch: Batch
    metrics: Metrics
    total: mx.array


class Recorder:
    """A step that writes a bundle when it gives a NaN or an infinity; returned by `record`.

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
        """Make a step; check the waiting steps first if there are `every` of them."""
        caller = "replay.record"
        check_arrays(caller, "batch", batch)
        if state is not self._after:  # otherwise it was checked when the step before returned it
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
        # Starts the evaluation without waiting. An unevaluated sum would keep its arrays in memory.
        mx.async_eval([*tree.leaves((after, metrics)), total])
        if not self._window:
            self._before = state
        self._window.append(_Made(batch, metrics, total))
        self._after = after
        return after, metrics

    def check(self) -> Path | None:
        """Check the waiting steps; return the bundle if one was written.

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
        """Check the last steps, and free the directory for another recorder."""
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
        """Write the first bad step of a window; the states within a longer window are computed again."""
        state = before
        for number, (made, total) in enumerate(zip(window, totals, strict=True)):
            after, metrics = (last, made.metrics) if len(window) == 1 else self._step(state, made.batch)
            # A sum of large finite numbers may be infinite, so each array is checked on its own.
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
    """Wrap a step for the loop, so that a step with a NaN or an infinity can be repeated bit for bit.

    If a metric (`loss`, `grad_norm`, your own) or a new parameter is NaN or infinite, the state and batch
    before that step, its metrics and its device are written to a bundle below `directory`. Training
    continues with a `ReplayWarning`. `recorder.bundles` lists the bundles written so far.

    Cost: states are immutable, so the recorder keeps references only. Each call starts the evaluation of the
    step and adds the metrics and the new parameters, which reads every parameter once. The result is
    read at the next call, when a loop that evaluates each step has already waited. A loop that runs ahead
    of the device waits there. With `every=k` it waits once in k steps; one older state and k batches
    stay in memory, and the bad step among the k is found by repeating them. (A state that the call before
    did not return is checked on its own.)

    Args:
        step: `step(state, batch) -> (state, metrics)`, plain or compiled. Do not compile the recorder
            itself.
        directory: for bundles only; made if it does not exist. One recorder at a time uses it.
        every: check after so many steps.
        max_bundles: after so many bundles, the recorder only calls the step.
        ignore: metrics that may be infinite, such as a perplexity, or the `grad_norm` of a
            `loss_scaled_step`.
        params: also check the new parameters (the whole new state, if it has no `params`).

    Returns:
        A callable like `step`. Use it as a context manager or close it, so that the last steps are checked.

    Raises:
        ValueError: if the directory holds checkpoints.
        LockedError: if another recorder, or a Checkpointer, writes to it.
        OSError: if the directory cannot be written; from a later call, if a bundle cannot be written.

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
    """Refuse a directory of checkpoints, in which a bundle would look like a checkpoint."""
    for entry in store.entries(root):
        try:
            manifest = layout.read(caller, entry)
        except ValueError:
            continue  # damaged
        if not bundle.is_bundle(manifest):
            raise checks.error(caller, f"{root} holds checkpoints: give bundles a directory of their own")


def _same(first: Metrics, second: Metrics) -> bool:
    return first.keys() == second.keys() and all(
        bool(mx.array_equal(bit_pattern(first[name]), bit_pattern(second[name])).item()) for name in first
    )


def _total(leaves: list[mx.array]) -> mx.array:
    """Return the sum of all elements, 0-d float32; it is not finite if an element is not finite."""
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
