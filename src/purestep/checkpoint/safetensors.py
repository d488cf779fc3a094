"""States in one safetensors file: arrays by path, the tree in the metadata."""

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from purestep import tree
from purestep.checkpoint import atomic
from purestep.checkpoint.header import check, header
from purestep.state import check_arrays
from purestep.types import Tree

_KEY = "purestep"


def save(path: str | os.PathLike[str], state: Tree) -> None:
    """Write a state, or any tree of arrays, to one safetensors file.

    The arrays keep their dtypes, bfloat16 and empty ones included, under their paths
    (`params.layers.0.weight`), so that any safetensors reader opens them; containers, NamedTuple types
    and `None` are in the metadata. The file appears complete or not at all; one that was there before
    stays until then. Missing parent directories are made.

    Args:
        path: the file to write.
        state: a tree of arrays; evaluated here, on the caller's thread.

    Raises:
        TypeError: for a leaf that is not an array, with its path.
        OSError: if the file cannot be written; what was there before is untouched.

    >>> import tempfile
    >>> file = tempfile.mkdtemp() + "/state.safetensors"
    >>> save(file, {"w": mx.array([1.0, 2.0])})
    >>> load(file, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    check_arrays("checkpoint.save", "state", state)
    arrays = dict(tree.items(state))
    mx.eval(arrays)
    metadata = {_KEY: json.dumps(header(state), separators=(",", ":"))}

    def fill(temporary: Path) -> None:
        # MLX appends the suffix to a name that lacks it.
        named = temporary.with_name(temporary.name.removesuffix(".safetensors") + ".safetensors")
        mx.save_safetensors(str(named), arrays, metadata)
        named.replace(temporary)

    atomic.write(Path(path), fill)


def load(path: str | os.PathLike[str], *, like: Tree) -> Tree:
    """Read a state that `save` wrote, into the containers of a template.

    Args:
        path: the file to read.
        like: a tree with the structure, shapes and dtypes that the file must have: the state before the
            first step serves. Its values are not used.

    Returns:
        A tree built like the template, its arrays in memory and independent of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated or foreign, or differs from the template: every path that is
            missing, extra, of another shape, dtype or container is listed.
    """
    where = "checkpoint.load"
    check_arrays(where, "like", like)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: no file at {os.fspath(path)}")
    stored = _read_header(where, path)
    check(where, os.fspath(path), stored, like)
    arrays = mx.load(os.fspath(path), format="safetensors")
    assert isinstance(arrays, dict)
    names = tree.paths(like)
    restored = tree.unflatten(like, [arrays.pop(name, None) for name in names])
    if arrays or not tree.alike(restored, like):
        raise ValueError(f"{where}: {os.fspath(path)} is damaged: its arrays are not those its header names")
    mx.eval(tree.leaves(restored))  # now: a lazy array would read whatever the file holds later
    return restored


def _read_header(where: str, path: str | os.PathLike[str]) -> Any:
    # The safetensors library checks offsets and lengths against the file before anything is read.
    try:
        with safe_open(os.fspath(path), framework="mlx") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{where}: {os.fspath(path)} is truncated or not a safetensors file ({error})"
        ) from None
    try:
        return json.loads(metadata.get(_KEY, "null"))
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: {os.fspath(path)} is damaged: its header is not JSON") from None
