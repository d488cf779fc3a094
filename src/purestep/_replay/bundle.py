"""Bundles: one recorded step on disk, with everything needed to repeat it bit for bit.

A bundle is a checkpoint directory, `step_00000012`, of the tree `{"state", "batch", "metrics"}`: complete or
absent, with a checksum of every array. The manifest holds the reason and the device as plain values.
"""

import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import CorruptError, kind_of
from purestep._checkpoint.restoring.restore import restore
from purestep._checkpoint.run import directory, store
from purestep._core import checks, hardware, tree
from purestep._core.packing import known_classes
from purestep._core.types import Batch, Metrics, Tree

_KEY = "replay"


class Bundle(NamedTuple):
    """A recorded step.

    Attributes:
        state: the state that was passed to the step.
        batch: the batch that was passed to the step.
        metrics: the metrics that the step returned.
        after: the checksum of each array of the returned state, by path.
        reason: the paths that were not finite: `metrics.loss`, `params.w`.
        step: the number of steps before this one.
        compiled: whether the step was compiled.
        device: the device that ran the step.
        versions: of purestep, MLX and Python.
        path: the bundle's directory.
    """

    state: Tree
    batch: Batch
    metrics: Metrics
    after: dict[str, str]
    reason: tuple[str, ...]
    step: int
    compiled: bool
    device: str
    versions: dict[str, str]
    path: Path


def load(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> Bundle:
    """Read a bundle that a recorder wrote, every byte verified.

    Nothing in the file is run or imported. A NamedTuple is rebuilt as the type with the same name and fields
    in `types` or in the modules of purestep.

    Args:
        path: the bundle's directory, under the name it was written with.
        types: the NamedTuple types of your own states and batches.

    Raises:
        FileNotFoundError: if the path does not exist.
        CorruptError: (a ValueError) if the bundle is not as it was written.
        ValueError: if it is a checkpoint and not a bundle, or holds a NamedTuple of an unknown type.
        OSError: if the system cannot read it, which does not mean damage.

    >>> import mlx.core as mx, purestep as ps, tempfile, warnings
    >>> step = lambda state, batch: (state, {"loss": mx.log(batch["x"])})
    >>> with warnings.catch_warnings(action="ignore"):
    ...     with ps.replay.record(step, tempfile.mkdtemp()) as recorder:
    ...         state, metrics = recorder({"w": mx.ones(2)}, {"x": mx.array(0.0)})
    >>> bundle = load(recorder.bundles[0])
    >>> bundle.step, bundle.batch, bundle.reason
    (0, {'x': array(0, dtype=float32)}, ('metrics.loss',))
    """
    caller = "replay.load"
    path = check_path(caller, check_path(caller, path).absolute())
    if not kind_of(caller, path, follow=False):
        raise FileNotFoundError(f"{caller}: no bundle at {path}")
    inside = store.steps(path)
    if inside:
        raise checks.error(
            caller, f"{path} holds bundles: name one, {store.existing(caller, path, inside[-1])}"
        )
    manifest = directory.read(caller, path, only=_KEY)
    facts = manifest.record.metadata.get(_KEY)
    if facts is None:
        raise checks.error(caller, f"{path} is a checkpoint: only replay.record writes bundles")
    try:
        reason, compiled, device = tuple(facts["reason"]), facts["compiled"], facts["device"]
        after = dict(facts["after"].items())
        texts = [*reason, device, *after, *after.values()]
        if type(facts["reason"]) is not list or type(compiled) is not bool or {*map(type, texts)} != {str}:
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise CorruptError(f"{caller}: {path} is damaged: it does not describe a bundle") from None
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"{caller}: types must be a list of NamedTuple types, got {types!r}")
    known = _known(caller, manifest.tree, types)
    built = restore(caller, manifest.stored_tree(caller), None, types=known)
    if type(built) is not dict or built.keys() != {"state", "batch", "metrics"}:
        raise CorruptError(f"{caller}: {path} is damaged: it does not describe a bundle")
    return Bundle(
        built["state"],
        built["batch"],
        built["metrics"],
        after,
        reason,
        manifest.record.step,
        compiled,
        device,
        manifest.record.versions,
        path,
    )


def write(
    root: str | os.PathLike[str],
    step: int,
    state: Tree,
    batch: Batch,
    metrics: Metrics,
    after: Tree,
    reason: tuple[str, ...],
    *,
    compiled: bool = False,
) -> Path:
    """Write one bundle below a directory, in place of any of that step; return its path.

    Raises:
        OSError: if it cannot be written whole.
    """
    kept = {"state": state, "batch": batch, "metrics": metrics}
    arrays, spec = tensors.snapshot(kept, "replay.record"), tree.to_plain(tree.spec(kept))
    facts = {
        "reason": list(reason),
        "compiled": compiled,
        "device": device(),
        "after": digests(after),
    }
    manifest = {"step": step, "time": time.time(), "metrics": {}, "metadata": {_KEY: facts}}
    root = Path(root).absolute()
    return store.put(root, step, lambda place: directory.write(place, arrays, spec, manifest, None))


def is_bundle(manifest: directory.Manifest) -> bool:
    """Tell whether a checkpoint is a bundle."""
    return _KEY in manifest.record.metadata


def digests(state: Tree) -> dict[str, str]:
    """Return the checksum of each array by path; waits for the device."""
    return {
        path: checksum.of(checksum.raw(leaf))
        for path, leaf in tensors.snapshot(state, "replay.record").items()
    }


def device() -> str:
    """Return the name of the GPU, or the kind of CPU and its BLAS: results depend on them."""
    name = hardware.device_name()
    return f"cpu, {platform.machine()}, {hardware.blas()} BLAS" if name == "cpu" else name


def _known(caller: str, spec: tree.Spec, types: Iterable[type]) -> list[Any]:
    """Return the type for each NamedTuple that a spec describes."""
    # Types of the user come before those of purestep. No other loaded module is searched.
    own = [
        kind
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "purestep"
        for kind in vars(module).values()
    ]
    own += known_classes()  # a bundle keeps the vectors of `packed`: others would round otherwise
    found: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
    for candidates in (own, types):
        group: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
        for kind in candidates:
            if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
                same = group.setdefault((kind.__name__, tuple(kind._fields)), [])  # type: ignore[attr-defined]
                if kind not in same:
                    same.append(kind)
        found |= group
    missing, chosen = [], []
    for name, fields in dict.fromkeys(_namedtuples(spec)):
        kinds = found.get((name, fields), [])
        shown = f"{name}({', '.join(fields)})"
        if len(kinds) != 1:
            missing.append(shown if not kinds else f"{shown}, of which there are {len(kinds)}")
        else:
            chosen.append(kinds[0])
    if missing:
        raise checks.error(
            caller, f"types must hold one NamedTuple for each of the bundle's: {'; '.join(missing)}"
        )
    return chosen


def _namedtuples(spec: tree.Spec) -> list[tuple[str, tuple[str, ...]]]:
    """Return the name and the fields of each NamedTuple in a spec."""
    nodes = (node for _, node in tree.spec_nodes(spec))
    return [
        (node.name, tuple(name for name, _ in node.children))
        for node in nodes
        if isinstance(node, tree.NodeSpec) and node.kind == "namedtuple"
    ]
