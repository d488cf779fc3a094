"""Match a stored tree with a template: where each array goes, and what differs."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from purestep._core import checks, tree
from purestep._core.tree.patterns import compile_pattern

_NONE, _EMPTY = tree.spec(None), tree.spec(())

Rename = Mapping[str, str] | Callable[[str], str]

_SEGMENT = re.compile(r'"(?:[^"\\]|\\.)*"|[^.]+')


class Match(NamedTuple):
    """The result of matching a stored tree with a template.

    Attributes:
        stored_paths: the stored path of the array for each path of the template.
        lines: the differences, a line each; if there are any, nothing may be restored.
        notes: the accepted differences and renames, a line each.
    """

    stored_paths: dict[str, str]
    lines: list[str]
    notes: list[str]


class _End(NamedTuple):
    """An array, a `None` or an empty container that is stored."""

    segments: tuple[str, ...]
    path: str
    name: str  # the path after renaming
    node: tree.Spec
    places: list[str]  # the paths of the containers that hold it, from the outermost
    above: list[tree.Spec]  # these containers, without their children


def match(
    caller: str,
    stored: tree.Spec,
    like: tree.Spec,
    *,
    cast: bool,
    partial: Collection[str],
    rename: Rename | None,
) -> Match:
    """Compare two specs at every path: arrays, `None` and containers, after renaming."""
    if stored == like and not partial and rename is None:
        return Match({path: path for path, _ in tree.spec_items(like)}, [], [])
    wanted: dict[str, tree.Spec] = {".".join(segments): node for segments, node in tree.spec_nodes(like)}
    ends: list[_End] = []
    _gather((), stored, [], [], ends)
    ends, lines, notes = _renamed(caller, ends, rename)
    offered = _offered(ends, wanted)
    patterns = [compile_pattern(caller, text) for text in partial]
    for text, pattern in zip(partial, patterns, strict=True):
        if not any(pattern.fullmatch(path) for path in [*wanted, *offered]):
            raise checks.error(caller, f"partial pattern {text!r} matches no path of the file or of like")
    refused: set[str] = set()
    met: set[str] = set()

    def differs(path: str, found: list[str], note: str) -> None:
        met.add(path)
        if any(pattern.fullmatch(path) for pattern in patterns):
            notes.append(note)
        elif not any(above in refused for above in _above(path)):
            refused.add(path)
            lines.extend(found)

    arrays = {end.name: end.path for end in ends if isinstance(end.node, tree.ArraySpec)}
    names = {end.name for end in ends}
    stored_paths: dict[str, str] = {}
    for path, nodes in offered.items():
        if path not in wanted:
            if path in names:
                differs(path, [f"{path} is in the file, not in like"], f"{path} was left in the file")
            continue
        want = wanted[path]
        found = [_differences(path, node, want, cast) for node in nodes]
        worst = max(found, key=len, default=[])
        if worst:
            passed = "kept from like" if _is_end(want) else "let pass"
            differs(path, worst, f"{' and '.join(worst)}: {passed}")
        elif isinstance(want, tree.ArraySpec) and path in arrays:
            stored_paths[path] = arrays[path]
    for path, node in wanted.items():
        present = path in (arrays if isinstance(node, tree.ArraySpec) else offered)
        if _is_end(node) and not present and path not in met:
            differs(path, [f"{path} is in like, not in the file"], f"{path} was kept from like")
    return Match(stored_paths, lines, sorted(notes))


def _offered(ends: list[_End], wanted: Mapping[str, tree.Spec]) -> dict[str, list[tree.Spec]]:
    """Return the stored nodes by their new paths, without their children; outer containers come first.

    A container moves with its contents. A container whose contents are all new has no node; a container that
    is joined from several has one node for each kind among them.
    """
    # The containers around a path that was not renamed are known.
    places = [end.places if end.name == end.path else _above(end.name) for end in ends]
    taken = {
        above for end, around in zip(ends, places, strict=True) if end.name in wanted for above in around
    }
    offered: dict[str, list[tree.Spec]] = {}
    for end, around in zip(ends, places, strict=True):
        segments = end.segments if end.name == end.path else split(end.name)
        kinds = {new: end.above[old] for old, new in _aligned(end.segments, segments)}
        for depth, path in enumerate(around):
            nodes = offered.setdefault(path, [])
            # The rest of a file does not describe a container that also receives other nodes.
            if depth in kinds and (end.name in wanted or path not in taken) and kinds[depth] not in nodes:
                nodes.append(kinds[depth])
        offered.setdefault(end.name, []).append(_alone(end.node))
    return offered


def _aligned(old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Yield the depths at which a path and its new name have the same container.

    Paths of equal length agree at every depth. Otherwise they agree at the depth of each kept segment,
    counted from the end, and from the start down to the first segment that is not kept.
    """
    if len(old) == len(new):
        yield from ((depth, depth) for depth in range(len(old)))
        return
    kept = _agreeing(old[::-1], new[::-1])
    yield from ((len(old) - count, len(new) - count) for count in range(1, kept + 1))
    above = min(_agreeing(old, new) + 1, len(old) - kept, len(new) - kept)
    yield from ((depth, depth) for depth in range(above))


def _agreeing(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def renamed(caller: str, path: str, rename: Rename, used: set[str]) -> str:
    """Return the new name of a path, and add the leading part that matched to `used`."""
    if not isinstance(rename, Mapping):
        new: Any = rename(path)
        if not isinstance(new, str):
            raise TypeError(f"{caller}: rename must return a path, got {new!r} for {path!r}")
        return new
    # The longest matching leading part is used.
    for start in sorted(rename, key=len, reverse=True):
        if path == start or path.startswith(start + "."):
            used.add(start)
            return (rename[start] + path[len(start) :]).removeprefix("" if rename[start] else ".")
    return path


def _renamed(caller: str, ends: list[_End], rename: Rename | None) -> tuple[list[_End], list[str], list[str]]:
    """Return the ends under their new names, the problems with these names, and the arrays concerned."""
    if rename is None:
        return ends, [], []
    used: set[str] = set()
    named = [end._replace(name=renamed(caller, end.name, rename, used)) for end in ends]
    taken: dict[str, str] = {}
    lines, notes = [], []
    for end, new in zip(ends, named, strict=True):
        if new.name in taken:
            lines.append(f"{taken[new.name]} and {end.name} would both be named {new.name}")
        if new.name != end.name and isinstance(end.node, tree.ArraySpec):
            notes.append(f"{end.name} was read as {new.name}")
        taken[new.name] = end.name
    if isinstance(rename, Mapping):
        lines += [f"rename: {old} is not in the file" for old in rename if old not in used]
    return named, lines, notes


def _gather(
    segments: tuple[str, ...], node: tree.Spec, places: list[str], above: list[tree.Spec], ends: list[_End]
) -> None:
    """Add the ends at and below a node; those of one container share its lists."""
    path = ".".join(segments)
    if _is_end(node):
        ends.append(_End(segments, path, path, node, places, above))
        return
    places, above = [*places, path], [*above, _alone(node)]
    for segment, child in tree.spec_children(node):
        _gather((*segments, segment), child, places, above, ends)


def _is_end(node: tree.Spec) -> bool:
    return isinstance(node, tree.ArraySpec) or not node.children


def _alone(node: tree.Spec) -> tree.Spec:
    return node if isinstance(node, tree.ArraySpec) else tree.NodeSpec(node.kind, node.name)


def _differences(path: str, node: tree.Spec, want: tree.Spec, cast: bool) -> list[str]:
    if node == _NONE and want == _EMPTY:
        return []  # a state below a mask held None for what is not its own, and now holds ()
    lines = tree.differences(node, _alone(want), "the file", "like", cast=cast)
    return [line.replace("the tree", path, 1) if path else line for line in lines]


def split(path: str) -> tuple[str, ...]:
    """Return the segments of a path."""
    return tuple(_SEGMENT.findall(path))


def _above(path: str) -> list[str]:
    """Return the paths of the containers that hold a path, from the outermost.

    >>> _above('opt."a.b".w')
    ['', 'opt', 'opt."a.b"']
    """
    segments = split(path)
    return [".".join(segments[:depth]) for depth in range(len(segments))]
