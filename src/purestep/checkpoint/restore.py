"""From what is stored to a tree: against a template, every difference at once, or into plain containers."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep import checks, tree
from purestep.checkpoint.header import CorruptError
from purestep.state import check_arrays
from purestep.transforms.masking import compile_pattern
from purestep.types import Tree

Rename = Mapping[str, str] | Callable[[str], str]


class RestoreWarning(UserWarning):
    """A restore did what its caller allowed: cast, renamed, or left something out."""


class Stored(NamedTuple):
    """A state on disk or in bytes, before its arrays are read.

    Attributes:
        source: what errors call it.
        tree: its `tree.spec`.
        read: from a list of paths to the arrays stored there, verified and in memory.
    """

    source: str
    tree: Any
    read: Callable[[list[str]], dict[str, mx.array]]


def leaf_specs(where: str, source: str, spec: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype's name and the shape of every array that a spec describes, by path.

    Raises:
        CorruptError: if it is no spec.
    """
    try:
        found = tree.spec_items(spec)
    except (LookupError, TypeError, ValueError, RecursionError):
        found = None
    if found is None or len(dict(found)) != len(found):
        raise CorruptError(f"{where}: {source} is damaged: it does not describe a tree")
    return dict(found)


def restore(
    where: str,
    stored: Stored,
    like: Tree,
    *,
    cast: bool = False,
    partial: Collection[str] = (),
    rename: Rename | None = None,
    types: Collection[type] = (),
) -> Tree:
    """Read a stored state into the containers of a template; `None` gives dicts, lists and tuples."""
    if isinstance(partial, str):
        raise TypeError(f"{where}: partial must be a list of patterns, got the string {partial!r}")
    if like is None:
        if cast or partial or rename:
            raise checks.refuse(where, "cast, partial and rename need a template: give like")
        names = list(leaf_specs(where, stored.source, stored.tree))
        return _build(stored.tree, stored.read(names), {kind.__name__: kind for kind in types})
    check_arrays(where, "like", like)
    offered = leaf_specs(where, stored.source, stored.tree)
    if partial or rename:
        sources, lines, notes = _match(where, offered, like, partial, rename, cast)
    else:
        lines = tree.differences(stored.tree, tree.spec(like), "the file", "like", cast=cast)
        sources, notes = {path: path for path in offered}, []
    if lines:
        raise checks.refuse(where, f"{stored.source} does not fit like:\n  " + "\n  ".join(lines))
    arrays = stored.read(list(sources.values()))

    def leaf(path: str, template: mx.array) -> mx.array:
        if path not in sources:
            return template
        array = arrays[sources[path]]
        if array.dtype != template.dtype:
            names = tree.dtype_name(array.dtype), tree.dtype_name(template.dtype)
            notes.append(f"{path} was cast from {names[0]} to {names[1]}")
        return array.astype(template.dtype)

    restored = tree.map_with_path(leaf, like)
    mx.eval(tree.leaves(restored))
    if notes:
        warnings.warn(f"{where}: {stored.source}:\n  " + "\n  ".join(notes), RestoreWarning, stacklevel=4)
    return restored


def _match(
    where: str,
    offered: dict[str, tuple[str, tuple[int, ...]]],
    like: Tree,
    partial: Collection[str],
    rename: Rename | None,
    cast: bool,
) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the stored path for each path of the template, what does not fit, and what was let pass."""
    sources, lines, notes = _renamed(where, list(offered), rename)
    patterns = [compile_pattern(where, pattern) for pattern in partial]
    wanted = dict(tree.items(like))
    for text, pattern in zip(partial, patterns, strict=True):
        if not any(pattern.fullmatch(path) for path in [*wanted, *sources]):
            raise checks.refuse(where, f"partial pattern {text!r} matches no path of the file or of like")

    def differs(path: str, line: str, note: str) -> None:
        if any(pattern.fullmatch(path) for pattern in patterns):
            notes.append(note)
        else:
            lines.append(line)

    taken: dict[str, str] = {}
    for path, template in wanted.items():
        if path not in sources:
            differs(path, f"{path} is in like, not in the file", f"{path} was kept from like")
            continue
        dtype, shape = offered[sources[path]]
        spec = ["array", dtype, list(shape)]
        found = tree.differences(spec, tree.spec(template), "the file", "like", cast=cast)
        if found:
            line = found[0].replace("the tree", path, 1)
            differs(path, line, f"{line}: kept from like")
        else:
            taken[path] = sources[path]
    for path in sources.keys() - wanted.keys():
        differs(path, f"{path} is in the file, not in like", f"{path} was left in the file")
    return taken, lines, sorted(notes)


def _renamed(
    where: str, stored: list[str], rename: Rename | None
) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the stored path by the name it takes."""
    if rename is None:
        return {path: path for path in stored}, [], []
    used: set[str] = set()

    def name(path: str) -> str:
        if not isinstance(rename, Mapping):
            return rename(path)
        # The longest of the given leading parts decides.
        for end in sorted(rename, key=len, reverse=True):
            if path == end or path.startswith(end + "."):
                used.add(end)
                return rename[end] + path[len(end) :]
        return path

    sources: dict[str, str] = {}
    lines, notes = [], []
    for path in stored:
        new = name(path)
        if new in sources:
            lines.append(f"{sources[new]} and {path} would both be named {new}")
        if new != path:
            notes.append(f"{path} was read as {new}")
        sources[new] = path
    if isinstance(rename, Mapping):
        lines += [f"rename: {old} is not in the file" for old in rename.keys() - used]
    return sources, lines, notes


def _build(spec: list[Any], arrays: dict[str, mx.array], types: Mapping[str, type], path: str = "") -> Any:
    """Return plain containers; a NamedTuple becomes one of `types` of that name and fields, or a dict."""
    if spec[0] == "array":
        return arrays[path]
    if spec[0] == "none":
        return None
    built = [
        _build(child, arrays, types, tree.join(path, segment)) for segment, child in tree.spec_children(spec)
    ]
    if spec[0] == "dict":
        return {key: child for (key, _), child in zip(spec[1], built, strict=True)}
    if spec[0] == "namedtuple":
        fields = tuple(name for name, _ in spec[2])
        kind: Any = types.get(spec[1])
        if kind is not None and getattr(kind, "_fields", None) == fields:
            return kind(*built)
        return dict(zip(fields, built, strict=True))
    return tuple(built) if spec[0] == "tuple" else built
