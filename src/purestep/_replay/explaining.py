"""Repeat a step and find the first NaN or infinity in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import verified
from purestep._checkpoint.run import directory
from purestep._core import checks, tree
from purestep._core.packing import unpacked
from purestep._core.types import Batch, Metrics, Tree
from purestep._measures.difference import Difference, bit_pattern, difference
from purestep._measures.finite import nonfinite_paths
from purestep._replay import bundle
from purestep._replay.bundle import Bundle
from purestep._steps.compile import Compiled, compiled
from purestep._steps.state import check_arrays

# What a step adds to the metrics once it has the gradients; the others come with the loss.
_LATER = ("grad_norm", "learning_rate", "loss_scale")
_UNSEEN = (
    "gradients and updates cannot be seen: the step has no function `parts`, as those that "
    "train_step, loss_scaled_step and sam_step build have"
)


class Nonfinite(NamedTuple):
    """An array that is not finite everywhere.

    Attributes:
        path: which array: `gradients.layers.0.weight`.
        nan: how many elements are NaN.
        infinite: how many are infinite.
        size: how many there are.
        first: the index of the first that is either.
    """

    path: str
    nan: int
    infinite: int
    size: int
    first: tuple[int, ...]


class Stage(NamedTuple):
    """One stage of a step.

    Attributes:
        name: `state`, `batch`, `loss`, `gradients`, `metrics`, `updates` or `new state`.
        arrays: how many arrays there are; `None` if the step does not show them.
        nonfinite: those that are not finite everywhere.
    """

    name: str
    arrays: int | None
    nonfinite: tuple[Nonfinite, ...]


class Report(NamedTuple):
    """The result of repeating a step.

    Attributes:
        first: the first array on the way that is not finite, or `None`. An infinity that the optimizer
            state already carried (a best value so far begins as one) does not count.
        stages: in the order of the step.
        reproduced: whether metrics and new state have the recorded bits; `None` if nothing was recorded.
        mismatches: the paths whose bits differ from the recorded ones.
        conditions: differences between this run and the recorded one: versions, device.
        drift: what differs between the compiled step and the eager one, by path; `None` if only one ran.
        notes: what could not be checked or is unusual, one sentence each.
    """

    first: Nonfinite | None
    stages: tuple[Stage, ...]
    reproduced: bool | None
    mismatches: tuple[str, ...]
    conditions: tuple[str, ...]
    drift: dict[str, Difference] | None
    notes: tuple[str, ...]


def explain(
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    recorded: Bundle | tuple[Tree, Batch],
    *,
    eager_and_compiled: bool = True,
) -> Report:
    """Repeat a recorded step bit for bit, and find the first array in it that is not finite.

    The stages are: state and batch, the loss and the metrics of the loss function, gradients, the metrics of
    the step, updates, and the new state. A custom step shows gradients and updates only if it has an
    attribute `parts`, a function `(state, batch) -> (state, metrics, gradients, updates)`.

    Args:
        step: the step that was recorded, plain or compiled; a bundle says itself which of the two to compare.
        recorded: a bundle, or the state and the batch of a step.
        eager_and_compiled: run the step both ways and compare; otherwise only as it was recorded.

    Raises:
        ValueError: if the step fails with this state and batch, as with another model.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.sqrt(params["w"] * batch["x"]).sum()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.ones(2)}, transform)
    >>> step = ps.train_step(loss_fn, transform)
    >>> report = explain(step, (state, {"x": mx.array([1.0, 0.0])}), eager_and_compiled=False)
    >>> report.first
    Nonfinite(path='gradients.w', nan=1, infinite=0, size=2, first=(1,))
    """
    caller = "replay.explain"
    checks.function(caller, "step", step)
    if not isinstance(recorded, tuple) or not (isinstance(recorded, Bundle) or len(recorded) == 2):
        raise TypeError(
            f"{caller}: recorded must be a Bundle or (state, batch), got {type(recorded).__name__}"
        )
    state, batch = recorded[:2]
    check_arrays(caller, "state", state)
    check_arrays(caller, "batch", batch)
    eager = step.step if isinstance(step, Compiled) else step
    was_compiled = recorded.compiled if isinstance(recorded, Bundle) else isinstance(step, Compiled)
    runs: dict[bool, Tree] = {}
    for fast in (False, True):
        if eager_and_compiled or fast == was_compiled:
            whole = step if isinstance(step, Compiled) else compiled(step)
            runs[fast] = _run(caller, whole if fast else eager, state, batch)
    after, metrics = runs[was_compiled]
    parts: Any = getattr(eager, "parts", None)
    inner = None if parts is None else parts(state, batch)
    stages = _stages(state, batch, after, metrics, inner)
    reproduced, mismatches, conditions = None, (), ()
    if isinstance(recorded, Bundle):
        conditions = _conditions(recorded)
        mismatches = _mismatches(caller, recorded, after, metrics)
        reproduced = not mismatches
    drift = _drift(runs[True], runs[False]) if len(runs) == 2 else None
    first = _first(stages)
    notes = _notes(runs, first, recorded, was_compiled, parts)
    return Report(first, stages, reproduced, mismatches, conditions, drift, notes)


def _run(caller: str, step: Callable[[Any, Batch], Any], state: Tree, batch: Batch) -> Any:
    try:
        made = step(state, batch)
        if type(made) is not tuple or len(made) != 2 or type(made[1]) is not dict:
            raise TypeError(f"it returned no (state, metrics) but a {type(made).__name__}")
        check_arrays("the step", "metrics", made[1])
        check_arrays("the step", "state", made[0])
        mx.eval(tree.leaves(made))
    except Exception as error:  # a step is the user's code: whatever it raises says that it does not fit
        raise checks.error(
            caller,
            f"step cannot be made from this state and batch, is it the one that was recorded? "
            f"({type(error).__name__}: {error})",
        ) from error
    return made


def _stages(state: Tree, batch: Batch, after: Tree, metrics: Metrics, inner: Any) -> tuple[Stage, ...]:
    early = {name: value for name, value in metrics.items() if name not in _LATER}
    late = {name: value for name, value in metrics.items() if name in _LATER}
    loss = {name: early.pop(name) for name in ("loss",) if name in early}
    gradients, updates = (None, None) if inner is None else inner[2:4]
    return (
        _stage("state", {"state": state}),
        _stage("batch", {"batch": batch}),
        _stage("loss", {**loss, "metrics": early}),
        Stage("gradients", None, ()) if inner is None else _stage("gradients", {"gradients": gradients}),
        _stage("metrics", {"metrics": late}),
        Stage("updates", None, ()) if inner is None else _stage("updates", {"updates": updates}),
        _stage("new state", {"new": after}),
    )


def _first(stages: tuple[Stage, ...]) -> Nonfinite | None:
    aside = {
        end + found.path.removeprefix("state")
        for found in stages[0].nonfinite
        for end in ("state", "new")
        if found.path.startswith("state.opt_state.") and not found.nan
    }
    return next((found for stage in stages for found in stage.nonfinite if found.path not in aside), None)


def _stage(name: str, values: Mapping[str, Tree]) -> Stage:
    bad = set(nonfinite_paths(dict(values)))
    named = tree.items(unpacked(dict(values)))
    return Stage(name, len(named), tuple(_nonfinite(path, leaf) for path, leaf in named if path in bad))


def _nonfinite(path: str, leaf: mx.array) -> Nonfinite:
    nan, infinite = mx.isnan(leaf), mx.isinf(leaf)
    counts: Any = mx.stack([nan.sum(), infinite.sum(), mx.argmax((nan | infinite).reshape(-1))]).tolist()
    index, rest = [], counts[2]
    for length in reversed(leaf.shape):
        rest, place = divmod(rest, length)
        index.append(place)
    return Nonfinite(path, counts[0], counts[1], leaf.size, tuple(reversed(index)))


def _conditions(recorded: Bundle) -> tuple[str, ...]:
    here = {**directory.versions(), "device": bundle.device()}
    then = {**recorded.versions, "device": recorded.device}
    return tuple(
        f"{name}: {then.get(name, 'unknown')} when recorded, {here.get(name, 'unknown')} here"
        for name in sorted(then.keys() | here.keys())
        if then.get(name) != here.get(name)
    )


def _mismatches(caller: str, recorded: Bundle, after: Tree, metrics: Metrics) -> tuple[str, ...]:
    found = []
    for name in sorted(metrics.keys() | recorded.metrics.keys()):
        a, b = metrics.get(name), recorded.metrics.get(name)
        if (
            a is None
            or b is None
            or not tree.alike(a, b)
            or not mx.array_equal(bit_pattern(a), bit_pattern(b)).item()
        ):
            found.append(f"metrics.{name}")
    arrays = tensors.snapshot(after)
    source = str(recorded.path)
    for path in sorted(arrays.keys() | recorded.after.keys()):
        there = path in arrays and path in recorded.after
        if not there or not verified(caller, source, recorded.after[path], checksum.raw(arrays[path])):
            found.append(tree.join("new", path))
    return tuple(found)


def _drift(fast: Tree, slow: Tree) -> dict[str, Difference]:
    pairs = {}
    for (path, a), b in zip(tree.items(fast[0]), tree.leaves(slow[0]), strict=True):
        pairs[tree.join("new", path)] = (a, b)
    for name, value in fast[1].items():
        pairs[tree.join("metrics", name)] = (value, slow[1][name])
    measured = {path: difference(a, b) for path, (a, b) in pairs.items()}
    return {path: found for path, found in measured.items() if not found.same_bits}


def _notes(
    runs: dict[bool, Tree], first: Nonfinite | None, recorded: Any, was_compiled: bool, parts: Any
) -> tuple[str, ...]:
    notes = [] if parts is not None else [_UNSEEN]
    if parts is not None and was_compiled:
        notes.append("the step was compiled; its gradients and updates are shown as they come out eager")
    if len(runs) == 2:
        whole = {fast: not nonfinite_paths(made) for fast, made in runs.items()}
        if whole[True] != whole[False]:
            broken = "compiled" if whole[False] else "eager"
            notes.append(f"only the {broken} step is not finite")
    if isinstance(recorded, Bundle) and first is None:
        notes.append(f"everything is finite here; when recorded, {', '.join(recorded.reason)} was not")
    return tuple(notes)
