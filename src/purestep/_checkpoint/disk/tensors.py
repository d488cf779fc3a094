"""Write named arrays to safetensors files: snapshots, shards and their index."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep._checkpoint.disk import atomic, device
from purestep._checkpoint.disk.line import Line
from purestep._checkpoint.format import checksum, outline
from purestep._checkpoint.format.kinds import AXES
from purestep._checkpoint.format.names import ECOSYSTEM as ECOSYSTEM
from purestep._checkpoint.format.names import SUFFIX as SUFFIX
from purestep._checkpoint.format.names import shard
from purestep._core import checks, tree
from purestep._core.packing import shards_in, unpacked
from purestep._core.types import Tree


def snapshot(state: Tree, caller: str = "checkpoint.save") -> dict[str, mx.array]:
    """Return the `evaluated` arrays by path; refuse a state that safetensors files cannot hold.

    Raises:
        ValueError: for an array with a dtype or a name that cannot be stored, with its path.
    """
    check_storable(caller, state)
    arrays = dict(tree.items(state))
    check_arrays_storable(caller, "state", arrays)
    return evaluated(arrays)


def described(state: Tree, caller: str) -> tuple[dict[str, mx.array], list[Any]]:
    """Return the `snapshot` of a state and its plain spec, both without the vectors of `packed`.

    Raises:
        ValueError: as of `snapshot`; for a state of which this process has a part.
    """
    for path, held in shards_in(state):
        raise checks.error(
            caller,
            f"state must be whole, got one of {held.count} parts in {path}: call save of a "
            "ps.checkpoint.Checkpointer on every rank, or pass ps.parallel.gathered(state)",
        )
    state = unpacked(state)
    return snapshot(state, caller), tree.to_plain(tree.spec(state))


def check_arrays_storable(caller: str, name: str, arrays: Mapping[str, mx.array]) -> None:
    """Refuse arrays with a dtype or a path that cannot be stored.

    Args:
        caller: the public name that the user called.
        name: of the argument that holds the arrays.
        arrays: by path.

    Raises:
        ValueError: with the path.
    """
    for path, leaf in arrays.items():
        shown = tree.join(name, path) if path else name
        if leaf.dtype == mx.float64:
            raise checks.error(
                caller, f"{shown} is float64, which safetensors cannot hold: cast it to float32"
            )
        # The metadata of a file has this name, and the parameters of a checkpoint are stored without theirs.
        if path.removeprefix("params.") == "__metadata__":
            raise checks.error(
                caller, f"{shown} has a name that safetensors keeps for itself: rename the key"
            )
        if any("\ud800" <= character <= "\udfff" for character in path):
            raise checks.error(
                caller, f"{shown!a} has a lone surrogate in a key, which no file can name: rename the key"
            )


def check_storable(caller: str, state: Tree) -> None:
    """Refuse a tree that is too deep for a header, or has a path or a shape that is too long."""
    level, depth = [("state", state)], 0
    while level:
        if depth > outline.DEEPEST:
            raise checks.error(caller, f"state must be nested at most {outline.DEEPEST} containers deep")
        below: list[tuple[str, Any]] = []
        for path, node in level:
            if len(path) > outline.LONGEST:
                raise checks.error(
                    caller,
                    f"state must have paths of at most {outline.LONGEST} characters, got {len(path)} in "
                    f"{path[:80]!a}...",
                )
            if isinstance(node, mx.array) and node.ndim > AXES:
                raise checks.error(caller, f"{path} must have at most {AXES} axes, got {node.ndim}")
            below += [(f"{path}.{segment}", child) for segment, child in tree.children(node) or []]
        level = below
        depth += 1


def evaluated(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return arrays by path: evaluated, contiguous, and not changed by the caller's `x[...] = y`.

    Contiguous arrays, such as those that a step returns, share their memory with the state. On CUDA they are
    copies, made on the device; call `device.trim` when they are dropped.
    """
    own = device.copied if device.on_cuda() else mx.contiguous
    owned = {path: own(leaf) for path, leaf in arrays.items()}
    device.evaluate(owned.values())
    return owned


def shards(stem: str, arrays: Mapping[str, mx.array], limit: int | None) -> dict[str, dict[str, mx.array]]:
    """Divide arrays, in their order, among files of at most `limit` bytes, or one array each.

    The names are those of Hugging Face: `stem.safetensors`, or `stem-00001-of-00002.safetensors`.
    """
    groups: list[dict[str, mx.array]] = [{}]
    filled = 0
    for key, array in arrays.items():
        if limit is not None and groups[-1] and filled + array.nbytes > limit:
            groups.append({})
            filled = 0
        groups[-1][key] = array
        filled += array.nbytes
    if len(groups) == 1:
        return {stem + SUFFIX: groups[0]}
    return {shard(stem, number, len(groups)): group for number, group in enumerate(groups, start=1)}


def index(files: Mapping[str, Mapping[str, mx.array]], metadata: Mapping[str, Any]) -> str:
    """Return the text of `stem.safetensors.index.json`, in Hugging Face's convention."""
    size = sum(array.nbytes for arrays in files.values() for array in arrays.values())
    holders = {key: name for name, arrays in files.items() for key in arrays}
    return json.dumps({"metadata": {"total_size": size, **metadata}, "weight_map": holders}, indent=1) + "\n"


def write(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file and wait until it is on the disk.

    Raises:
        OSError: if it cannot be written whole.
    """
    _put(path, arrays, metadata)
    atomic.flush(path)


def write_summed(directory: Path, files: Mapping[str, Mapping[str, mx.array]]) -> dict[str, dict[str, str]]:
    """Write files as `write` does, and return the checksum of each array, by file.

    Other threads compute the checksums and wait for the disk while the next file is written.
    """
    with Line(_sums) as summing, Line(atomic.flush) as flushing:
        for name, arrays in files.items():
            # On CUDA the first read of an array moves it, so two threads must not read it at once.
            if mx.cuda.is_available():
                _put(directory / name, arrays, {})
                summing.give(arrays)
            else:
                summing.give(arrays)
                _put(directory / name, arrays, {})
            flushing.give(directory / name)
    flushing.results()
    return dict(zip(files, summing.results(), strict=True))


def _sums(arrays: Mapping[str, mx.array]) -> dict[str, str]:
    return {key: checksum.of(checksum.raw(array)) for key, array in arrays.items()}


def _put(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    # MLX appends the suffix to a name that lacks it.
    named = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    try:
        mx.save_safetensors(str(named), dict(arrays), {**ECOSYSTEM, **metadata})
    except (RuntimeError, ValueError) as error:
        free = ""
        with suppress(OSError):  # MLX's error is raised
            named.unlink(missing_ok=True)
            free = f" ({shutil.disk_usage(path.parent).free} bytes are free there)"
        size = sum(array.nbytes for array in arrays.values())
        raise OSError(f"cannot write {size} bytes to {path}{free}: {error}") from None
    if named != path:
        named.replace(path)


def check_limit(caller: str, limit: int | None) -> int | None:
    """Refuse a `shard_bytes` that is not a positive integer or `None`; return it."""
    return None if limit is None else checks.integer(caller, "shard_bytes", limit, least=1)
