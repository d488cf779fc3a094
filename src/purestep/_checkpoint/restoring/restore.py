"""Restore a stored state into the containers of a template, or into plain containers."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import mlx.core as mx

from purestep._checkpoint.disk import device
from purestep._checkpoint.format.specs import Leaves
from purestep._checkpoint.ranks.division import check_parts
from purestep._checkpoint.restoring.hyperparameters import warn_of_others
from purestep._checkpoint.restoring.matching import Rename as Rename
from purestep._checkpoint.restoring.matching import match
from purestep._checkpoint.restoring.parts import member_paths, read_part, with_parts, without_parts
from purestep._checkpoint.restoring.stored import StoredTree as StoredTree
from purestep._core import checks, tree
from purestep._core.collective import group_of
from purestep._core.packing import Shard, packed_like, shards_in, unpacked, viewed
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

Template = TypeVar("Template")
"""The type of the template, and so of the tree that is restored into it."""


class RestoreWarning(UserWarning):
    """A restore cast, renamed or left out arrays, as its arguments allow."""


def restore(
    caller: str,
    stored: StoredTree,
    like: Tree,
    *,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
    types: Collection[Any] = (),
    group: mx.distributed.Group | None = None,
) -> Tree:
    """Read a stored state into the containers of a template; `None` gives dicts, lists and tuples.

    Without a template, a NamedTuple becomes the one of `types` with its name and fields, or a dict. Where the
    template has the parts of one rank of `group`, only these are read.
    """
    patterns = patterns_of(caller, partial)
    check_rename(caller, rename)
    if like is None:
        if cast or patterns or rename:
            raise checks.error(caller, "cast, partial and rename need a template: give like")
        known = {(kind.__name__, kind._fields): kind for kind in types}
        return _build(stored.tree, stored.read(list(stored.leaves)), known)
    check_arrays(caller, "like", like)
    rank = _rank_of(caller, like, group)
    vectors, whole = like, viewed(like)  # files hold the model's own trees
    stored_paths, lines, notes = match(
        caller, stored.tree, tree.spec(whole), cast=cast, partial=patterns, rename=rename
    )
    if lines:
        raise checks.error(caller, f"{stored.source} does not fit like:\n  " + "\n  ".join(lines))
    parts: dict[str, Shard] = {}
    if rank is not None:
        del whole
        for path, shard in shards_in(vectors):
            paths = list(member_paths(path, shard))
            names = {name: stored_paths.pop(name) for name in paths if name in stored_paths}
            notes += _casts(stored.leaves, names, dict(tree.items(viewed(shard))), path)
            parts[path] = read_part(path, shard, names, rank, stored)
    bare = without_parts(vectors) if parts else vectors
    arrays = stored.read(list(stored_paths.values()))
    found = finished(caller, stored.source, unpacked(bare), stored_paths, arrays, notes)
    restored = packed_as(bare, found)
    return with_parts(restored, vectors, parts) if parts else restored


def _rank_of(caller: str, like: Tree, group: mx.distributed.Group | None) -> int | None:
    """Return the rank whose parts a template has, or `None` for a template without parts."""
    if next(shards_in(like), None) is None:
        return None
    processes = group_of(caller, group)
    check_parts(caller, "like", like, processes.size())
    return processes.rank()


def _casts(
    leaves: Leaves, names: Mapping[str, str], templates: Mapping[str, mx.array], above: str
) -> list[str]:
    """Return a note for each array of the parts that is converted."""
    notes: list[str] = []
    for path, template in templates.items():
        path = tree.join(above, path)
        if path in names:
            dtypes = leaves[names[path]].dtype, tree.dtype_name(template.dtype)
            if dtypes[0] != dtypes[1]:
                notes.append(f"{path} was cast from {dtypes[0]} to {dtypes[1]}")
    return notes


def packed_as(like: Tree, restored: Tree) -> Tree:
    """Return a restored tree with the vectors of `packed` where the template has them, in memory."""
    restored = packed_like("checkpoint", restored, like)
    device.evaluate(tree.leaves(restored))
    return restored


def finished(
    caller: str,
    source: str,
    like: Tree,
    names: Mapping[str, str],
    arrays: Mapping[str, mx.array],
    notes: list[str],
) -> Tree:
    """Put arrays into the containers of a template, in its dtypes, and warn of accepted differences.

    Args:
        caller: the public name that the user called.
        source: the name of the stored state in messages.
        like: the template.
        names: the name in `arrays` for each path of the template that does not keep its own array.
        arrays: in memory, of the template's shapes.
        notes: the differences accepted so far.
    """

    def leaf(path: str, template: mx.array) -> mx.array:
        if path not in names:
            return template
        array = arrays[names[path]]
        if array.dtype != template.dtype:
            dtypes = tree.dtype_name(array.dtype), tree.dtype_name(template.dtype)
            notes.append(f"{path} was cast from {dtypes[0]} to {dtypes[1]}")
        return array.astype(template.dtype)

    restored = tree.map_with_path(leaf, like)
    device.evaluate(tree.leaves(restored))
    if notes:
        warnings.warn(f"{caller}: {source}:\n  " + "\n  ".join(notes), RestoreWarning, checks.users_level())
    warn_of_others(caller, source, restored, like, names)
    return restored


def patterns_of(caller: str, partial: Any) -> list[str]:
    """Return `partial` as a list; refuse anything but a list of strings."""
    if isinstance(partial, str) or not isinstance(partial, Iterable):
        shown = f"the string {partial!r}" if isinstance(partial, str) else repr(partial)
        raise TypeError(f"{caller}: partial must be a list of patterns, got {shown}")
    patterns = list(partial)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{caller}: partial must be a list of patterns, got {pattern!r} among them")
    return patterns


def check_rename(caller: str, rename: Any) -> None:
    """Refuse a `rename` that neither maps strings to strings nor is a function."""
    if rename is None or (callable(rename) and not isinstance(rename, Mapping)):
        return
    if not isinstance(rename, Mapping):
        raise TypeError(f"{caller}: rename must map paths to paths, or be a function, got {rename!r}")
    for pair in rename.items():
        if not all(isinstance(path, str) for path in pair):
            raise TypeError(f"{caller}: rename must map paths to paths, got {pair[0]!r}: {pair[1]!r}")


def _build(
    spec: tree.Spec,
    arrays: Mapping[str, mx.array],
    types: Mapping[tuple[str, tuple[str, ...]], Any],
    path: str = "",
) -> Any:
    """Return plain containers; a NamedTuple becomes the type of its name and fields, or a dict."""
    if isinstance(spec, tree.ArraySpec):
        return arrays[path]
    if spec.kind == "none":
        return None
    keys = [key for key, _ in spec.children]
    built = [
        _build(child, arrays, types, tree.join(path, segment)) for segment, child in tree.spec_children(spec)
    ]
    if spec.kind == "namedtuple" and (spec.name, tuple(keys)) in types:
        return types[spec.name, tuple(keys)](*built)
    if spec.kind in ("dict", "namedtuple"):
        return dict(zip(keys, built, strict=True))
    return built if spec.kind == "list" else tuple(built)
