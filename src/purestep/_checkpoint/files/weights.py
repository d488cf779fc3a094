"""Load weights that other programs wrote, by name, into the containers of a template."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import reader
from purestep._checkpoint.disk.index import read_index
from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.format.header import CorruptError, kind_of
from purestep._checkpoint.format.names import INDEX, SUFFIX, index_of
from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep._checkpoint.format.specs import DTYPES, Leaves
from purestep._checkpoint.restoring.matching import Rename, renamed, split
from purestep._checkpoint.restoring.restore import Template, check_rename, finished, patterns_of
from purestep._core import checks, tree
from purestep._core.tree.patterns import compile_pattern
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

_FLOATING = {"float16", "bfloat16", "float32"}


class Weights(NamedTuple):
    """The arrays of one file, or of those that an index names.

    Attributes:
        source: their name in errors.
        directory: of the files.
        files: the file of each array by name.
        leaves: dtype and shape of each array by name.
    """

    source: str
    directory: Path
    files: dict[str, str]
    leaves: Leaves


def load_weights(
    path: str | os.PathLike[str],
    *,
    like: Template,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
) -> Template:
    """Read parameters from safetensors files that any program wrote, as those on Hugging Face.

    Arrays are matched by name, such as `layers.0.weight`. The result has all containers of `like`, also empty
    ones, so it fits a state that was made from `like`. One error lists every difference. `cast`, `partial`
    and `rename` each accept one kind of difference, and one `RestoreWarning` reports it.

    These files have no checksums: their headers are checked, their bytes are not. Arrays are not transposed:
    the axes of convolution weights have another order in PyTorch than in MLX.

    Args:
        path: a safetensors file; an index, `model.safetensors.index.json`; or a directory that has one.
        like: the parameters that the files must have, as `functional` returns them.
        cast: accept floating-point arrays of other dtypes and convert them to those of `like`.
        partial: patterns of names (`*` any characters, `?` one) that may be missing, extra or of another
            shape. The result has the arrays of `like` there.
        rename: from names in the files to names in `like`, for whole names or their leading parts
            (`{"model": ""}` drops one); or a function from name to name.

    Returns:
        A tree of arrays in memory, independent of the files.

    Raises:
        FileNotFoundError: if the file does not exist, or the directory has no file or several.
        CorruptError: (a ValueError) if a file is cut, is no safetensors file, or lacks an array of the index.
        ValueError: if the arrays differ from `like` (the message lists every name that is missing, extra,
            or of another shape or dtype), or if an array has a dtype that MLX cannot read.
        OSError: if the system cannot read a file, which does not mean damage.
        MemoryError: if there is not enough memory for the arrays.

    >>> import tempfile
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> mx.save_safetensors(file, {"model.body.w": mx.ones(2)})
    >>> like = {"body": {"w": mx.zeros(2)}, "dropout": {}}
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     load_weights(file, like=like, rename={"model": ""})
    {'body': {'w': array([1, 1], dtype=float32)}, 'dropout': {}}
    """
    caller = "checkpoint.load_weights"
    return read_weights(caller, weights_at(caller, check_path(caller, path)), like, cast, partial, rename)


def weights_at(caller: str, path: Path) -> Weights:
    """Return the arrays of a file, an index or a directory of either, with checked headers."""
    if kind_of(caller, path) == "directory":
        path = _in_directory(caller, path)
    if kind_of(caller, path) != "file":
        raise FileNotFoundError(f"{caller}: no file at {path}")
    if not path.name.endswith(".json"):
        leaves = _readable(caller, path)
        return Weights(str(path), path.parent, dict.fromkeys(leaves, path.name), leaves)
    index = read_index(caller, path, "")
    held = {name: _readable(caller, path.parent / name) for name in index.files}
    for key, name in index.placed():
        if key not in held[name]:
            raise CorruptError(f"{caller}: {path} is damaged: {key[:1000]} is not in {name}")
    files = dict(index.placed())
    leaves = {key: held[name][key] for key, name in files.items()}
    return Weights(str(path), path.parent, files, leaves)


def _readable(caller: str, path: Path) -> Leaves:
    leaves = read_safetensors_header(caller, path).leaves
    for name, (dtype, _) in leaves.items():
        if dtype not in DTYPES:
            raise checks.error(caller, f"{path} holds {name} in {dtype}, which MLX cannot read: convert it")
    return leaves


def read_weights(
    caller: str,
    weights: Weights,
    like: Tree,
    cast: bool,
    partial: Iterable[str],
    rename: Rename | None,
    note: str | None = None,
) -> Tree:
    """Match arrays by name and read them into the containers of a template; a `note` is reported first."""
    patterns = patterns_of(caller, partial)
    check_rename(caller, rename)
    check_arrays(caller, "like", like)
    wanted = {plain_name(path): (path, leaf) for path, leaf in tree.items(like)}
    names, lines, notes = _names(caller, weights, rename)
    compiled = [compile_pattern(caller, text) for text in patterns]
    for text, pattern in zip(patterns, compiled, strict=True):
        if not any(pattern.fullmatch(name) for name in [*wanted, *names]):
            raise checks.error(caller, f"partial pattern {text!r} matches no name of the file or of like")
    chosen: dict[str, str] = {}
    for name in [*names, *(name for name in wanted if name not in names)]:
        found = _differences(name, names, weights, wanted, cast)
        if not found:
            chosen[wanted[name][0]] = names[name]
        elif any(pattern.fullmatch(name) for pattern in compiled):
            notes.append(f"{found}: {'kept from like' if name in wanted else 'left in the file'}")
        else:
            lines.append(found)
    if lines:
        raise checks.error(caller, f"{weights.source} does not fit like:\n  " + "\n  ".join(lines))
    keys = list(chosen.values())
    arrays = reader.unsummed(caller, weights.directory, weights.files, weights.leaves, keys)
    return finished(caller, weights.source, like, chosen, arrays, [note, *sorted(notes)] if note else notes)


def _names(
    caller: str, weights: Weights, rename: Rename | None
) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the name in the file by its new name, what is wrong with these, and which were renamed."""
    names: dict[str, str] = {}
    lines, notes = [], []
    used: set[str] = set()
    for key in weights.leaves:
        new = key if rename is None else renamed(caller, key, rename, used)
        if new in names:
            lines.append(f"{names[new]} and {key} would both be named {new}")
        if new != key:
            notes.append(f"{key} was read as {new}")
        names[new] = key
    if isinstance(rename, Mapping):
        lines += [f"rename: {old} is not in the file" for old in rename if old not in used]
    return names, lines, notes


def _differences(
    name: str,
    names: Mapping[str, str],
    weights: Weights,
    wanted: Mapping[str, tuple[str, mx.array]],
    cast: bool,
) -> str:
    if name not in wanted:
        return f"{name} is in the file, not in like"
    if name not in names:
        return f"{name} is in like, not in the file"
    (dtype, shape), template = weights.leaves[names[name]], wanted[name][1]
    want = tree.dtype_name(template.dtype)
    if shape != template.shape:
        return f"{name} has shape {shape} in the file, {template.shape} in like"
    if dtype != want and not (cast and {dtype, want} <= _FLOATING):
        hint = "; pass cast=True to convert it" if {dtype, want} <= _FLOATING else ""
        return f"{name} has dtype {dtype} in the file, {want} in like{hint}"
    return ""


def plain_name(path: str) -> str:
    """Return the name of a leaf in other programs: the plain keys, joined by dots."""
    segments = (json.loads(part) if part.startswith('"') else part.strip("[]") for part in split(path))
    return ".".join(segments)


def _in_directory(caller: str, path: Path) -> Path:
    for name in (index_of("model"), "model" + SUFFIX):
        if kind_of(caller, path / name) == "file":
            return path / name
    for end in (SUFFIX + INDEX, SUFFIX):
        found = sorted(
            entry for entry in path.iterdir() if entry.name.endswith(end) and kind_of(caller, entry) == "file"
        )
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(entry.name for entry in found[:5])
            raise FileNotFoundError(f"{caller}: {path} has several files, give one of {shown}")
    raise FileNotFoundError(f"{caller}: {path} has no safetensors file")
