"""Match arrays that other programs wrote with a template, by name, and read them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import reader
from purestep._checkpoint.files.foreign import Weights
from purestep._checkpoint.format.specs import Leaves
from purestep._checkpoint.restoring.matching import Rename, renamed, split
from purestep._checkpoint.restoring.restore import check_rename, finished, packed_as, patterns_of
from purestep._core import checks, tree
from purestep._core.packing import unpacked
from purestep._core.tree.patterns import compile_pattern
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

_FLOATING = {"float16", "bfloat16", "float32"}

Convert = Callable[[dict[str, mx.array]], Mapping[str, mx.array]]


class Options(NamedTuple):
    """How a file may differ from a template.

    Attributes:
        cast: accept floating-point arrays of other dtypes.
        partial: patterns of names that may be missing, extra or of another shape.
        rename: from names in the file to names in the template.
        convert: from the arrays of the file to those of the template, by name.
    """

    cast: bool = False
    partial: Iterable[str] = ()
    rename: Rename | None = None
    convert: Convert | None = None


class _Arrays(NamedTuple):
    """The arrays to match: their dtypes and shapes, and the function that reads them."""

    leaves: Leaves
    read: Callable[[list[str]], dict[str, mx.array]]


def read_weights(
    caller: str,
    weights: Weights,
    like: Tree,
    options: Options,
    *,
    note: str | None = None,
    tied: Iterable[Sequence[str]] = (),
) -> Tree:
    """Match arrays by name and read them into the containers of a template.

    Args:
        caller: the public name that the user called.
        weights: the files.
        like: the template.
        options: how they may differ.
        note: reported before the accepted differences.
        tied: groups of names, of which the file may have one for all.
    """
    patterns = patterns_of(caller, options.partial)
    check_rename(caller, options.rename)
    if options.convert is not None:
        checks.function(caller, "convert", options.convert)
        if options.rename is not None:
            raise checks.error(caller, "rename must be None with convert, which returns the names of like")
    check_arrays(caller, "like", like)
    vectors, like = like, unpacked(like)
    wanted = {plain_name(path): (path, leaf) for path, leaf in tree.items(like)}
    held = _converted(caller, weights, options.convert) if options.convert else _as_they_are(caller, weights)
    names, lines, notes = _names(caller, held.leaves, options.rename)
    compiled = [compile_pattern(caller, text) for text in patterns]
    for text, pattern in zip(patterns, compiled, strict=True):
        if not any(pattern.fullmatch(name) for name in [*wanted, *names]):
            raise checks.error(caller, f"partial pattern {text!r} matches no name of the file or of like")
    for group in tied:
        found = [name for name in group if name in names]
        names.update({name: names[found[0]] for name in group if found and name not in names})
    chosen: dict[str, str] = {}
    for name in [*names, *(name for name in wanted if name not in names)]:
        found = _differences(name, names, held.leaves, wanted, options.cast)
        if not found:
            chosen[wanted[name][0]] = names[name]
        elif any(pattern.fullmatch(name) for pattern in compiled):
            notes.append(f"{found}: {'kept from like' if name in wanted else 'left in the file'}")
        else:
            lines.append(found)
    if lines:
        raise checks.error(caller, f"{weights.source} does not fit like:\n  " + "\n  ".join(lines))
    arrays = held.read(list(dict.fromkeys(chosen.values())))
    notes = [note, *sorted(notes)] if note else notes
    return packed_as(vectors, finished(caller, weights.source, like, chosen, arrays, notes))


def _as_they_are(caller: str, weights: Weights) -> _Arrays:
    def read(keys: list[str]) -> dict[str, mx.array]:
        return reader.unsummed(caller, weights.directory, weights.files, weights.leaves, keys)

    return _Arrays(weights.leaves, read)


def _converted(caller: str, weights: Weights, convert: Convert) -> _Arrays:
    """Return the arrays that `convert` makes of unread ones."""
    made: Any = convert(
        reader.unread(caller, weights.directory, weights.files, weights.leaves, weights.leaves)
    )
    if not isinstance(made, Mapping):
        raise TypeError(f"{caller}: convert must return arrays by name, got {type(made).__name__}")
    for name, array in made.items():
        if not isinstance(name, str) or not isinstance(array, mx.array):
            raise TypeError(
                f"{caller}: convert must return arrays by name, got {name!r}: {type(array).__name__}"
            )
    leaves = {name: tree.ArraySpec(tree.dtype_name(a.dtype), a.shape) for name, a in made.items()}
    files = [weights.directory / name for name in dict.fromkeys(weights.files.values())]

    def read(keys: list[str]) -> dict[str, mx.array]:
        return reader.in_memory(caller, {key: made[key] for key in keys}, dict.fromkeys(keys, files))

    return _Arrays(leaves, read)


def _names(caller: str, leaves: Leaves, rename: Rename | None) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the name in the file by its new name, what is wrong with these, and which were renamed."""
    names: dict[str, str] = {}
    lines, notes = [], []
    used: set[str] = set()
    for key in leaves:
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
    leaves: Leaves,
    wanted: Mapping[str, tuple[str, mx.array]],
    cast: bool,
) -> str:
    if name not in wanted:
        return f"{name} is in the file, not in like"
    if name not in names:
        return f"{name} is in like, not in the file"
    (dtype, shape), template = leaves[names[name]], wanted[name][1]
    want = tree.dtype_name(template.dtype)
    if shape != template.shape:
        moved = len(shape) > 2 and sorted(shape) == sorted(template.shape)
        hint = "; move its axes with convert" if moved else ""
        return f"{name} has shape {shape} in the file, {template.shape} in like{hint}"
    if dtype != want and not (cast and {dtype, want} <= _FLOATING):
        hint = "; pass cast=True to convert it" if {dtype, want} <= _FLOATING else ""
        if dtype == "uint8" and want in _FLOATING:
            hint = "; float8 is read as its bytes: use mx.from_fp8 in convert"
        return f"{name} has dtype {dtype} in the file, {want} in like{hint}"
    return ""


def plain_name(path: str) -> str:
    """Return the name of a leaf in other programs: the plain keys, joined by dots."""
    segments = (json.loads(part) if part.startswith('"') else part.strip("[]") for part in split(path))
    return ".".join(segments)
