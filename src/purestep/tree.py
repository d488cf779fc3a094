"""Trees of arrays: their paths, and maps that keep every container as it was.

A tree is a dict, list, tuple, NamedTuple or `None`, nested; everything else is a leaf. `None` and
empty containers hold no leaves and stay where they are.

A path names a leaf in one unambiguous string: `opt_state.1.mu.layers.0.weight`. NamedTuple fields and
plain dict keys are written bare, list and tuple positions as digits, dict keys that would read as
something else in JSON quotes (`"0"`, `"a.b"`), and integer dict keys in brackets (`[0]`).
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from purestep import scalars, sums
from purestep.types import Tree

# Leaves of up to this many elements are put in one vector to be summed.
_SMALL = 1 << 12
_LARGEST_KEY = 10_000  # bits; Python writes no integer of more than 4300 digits
_CHAIN = 64  # squares in one plain sum: the root halves its error
_ROWS = 1 << 16  # of arrays of up to this many rows only the rows are summed apart
_FLOATING = {"float16", "bfloat16", "float32", "float64"}
_PLAIN_KEY = re.compile(r'(?!\d+$)[^.\[\]"]+')


def children(node: Any) -> list[tuple[str, Any]] | None:
    """Return a container's (path segment, child) pairs, or `None` for a leaf."""
    if node is None:
        return []
    if type(node) is dict:
        return [(key_segment(key), child) for key, child in node.items()]
    if is_namedtuple(node):
        return list(zip(node._fields, node, strict=True))
    if type(node) in (list, tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    return None


def is_namedtuple(node: Any) -> bool:
    """Tell whether a value is a NamedTuple."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def join(path: str, segment: str) -> str:
    """Return the path of a child."""
    return f"{path}.{segment}" if path and segment else path or segment


def key_segment(key: Any) -> str:
    """Return how a path writes a dict key."""
    if isinstance(key, str):
        return key if _PLAIN_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    if isinstance(key, int) and not isinstance(key, bool):
        if key.bit_length() > _LARGEST_KEY:
            raise ValueError(f"tree: dict keys must be less than 2**{_LARGEST_KEY}, got a larger integer")
        return f"[{key}]"
    raise TypeError(f"tree: dict keys must be strings or integers, got {key!r}")


def items(tree: Tree) -> list[tuple[str, Any]]:
    """Return every leaf with its path, in the order that containers hold them.

    >>> items({"layers": [{"weight": 1}, {}], "0": 2, "bias": None})
    [('layers.0.weight', 1), ('"0"', 2)]
    """
    found: list[tuple[str, Any]] = []
    _collect("", tree, found)
    return found


# Recursion is by functions of the module throughout: one that is defined within another and calls itself is
# a cycle, which keeps what it has seen, whole states, until Python's collector comes by.
def _collect(path: str, node: Any, found: list[tuple[str, Any]]) -> None:
    below = children(node)
    if below is None:
        found.append((path, node))
        return
    for segment, child in below:
        _collect(join(path, segment), child, found)


def leaves(tree: Tree) -> list[Any]:
    """Return every leaf, in the order of `items`."""
    found: list[Any] = []
    map(found.append, tree)
    return found


def paths(tree: Tree) -> list[str]:
    """Return the path of every leaf, in the order of `items`."""
    return [path for path, _ in items(tree)]


_leaves = leaves  # where an argument takes the name


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(leaf, *other_leaves)` to every leaf and keep the containers.

    Raises:
        ValueError: if a tree of `rest` is built differently, with the path where it first differs.

    >>> map(lambda x, y: x + y, {"a": 1, "b": [2]}, {"a": 10, "b": [20]})
    {'a': 11, 'b': [22]}
    """
    try:
        return _map(fn, tree, rest)
    except _DiffersError:
        return map_with_path(lambda _, *nodes: fn(*nodes), tree, *rest)  # raises, with the path


class _DiffersError(Exception):
    """Two trees of one map are built differently; which path differs is for `map_with_path` to say."""


def _map(fn: Callable[..., Any], node: Any, rest: tuple[Any, ...]) -> Any:
    # Steps map whole states, so this goes without paths: it is most of what an uncompiled step costs.
    kind = type(node)
    if kind is dict:
        if not all(type(other) is dict and other.keys() == node.keys() for other in rest):
            raise _DiffersError
        return {key: _map(fn, child, tuple(other[key] for other in rest)) for key, child in node.items()}
    if kind is list or isinstance(node, tuple):
        if not all(type(other) is kind and len(other) == len(node) for other in rest):
            raise _DiffersError
        rows = zip(*rest, strict=True) if rest else ((),) * len(node)
        built = [_map(fn, child, others) for child, others in zip(node, rows, strict=True)]
        return built if kind is list else tuple(built) if kind is tuple else kind(*built)
    if node is None:
        if any(other is not None for other in rest):
            raise _DiffersError
        return None
    if any(other is None or type(other) in (dict, list) or isinstance(other, tuple) for other in rest):
        raise _DiffersError
    return fn(node, *rest)


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(path, leaf, *other_leaves)` to every leaf and keep the containers; errors as in `map`."""
    return _map_with_path(fn, "", tree, rest)


def _map_with_path(fn: Callable[..., Any], path: str, node: Any, others: tuple[Any, ...]) -> Any:
    if children(node) is None:
        for other in others:
            if children(other) is not None:
                raise _differs(path, node, other)
        return fn(path, node, *others)
    for other in others:
        if not _same_container(node, other):
            raise _differs(path, node, other)
    if node is None:
        return None
    if type(node) is dict:
        return {
            key: _map_with_path(
                fn, join(path, key_segment(key)), child, tuple(other[key] for other in others)
            )
            for key, child in node.items()
        }
    rows = zip(children(node) or [], *others, strict=True)
    built = [_map_with_path(fn, join(path, segment), child, tuple(row)) for (segment, child), *row in rows]
    return _rebuild(node, built)


def fields(tree: Tree, name: str) -> list[tuple[str, Any]]:
    """Return, with its path, what every NamedTuple in the tree holds in the field of this name."""
    found: list[tuple[str, Any]] = []
    _collect_fields("", tree, name, found)
    return found


def _collect_fields(path: str, node: Any, name: str, found: list[tuple[str, Any]]) -> None:
    for segment, child in children(node) or []:
        at = join(path, segment)
        if segment == name and is_namedtuple(node):
            found.append((at, child))
        _collect_fields(at, child, name, found)


def unflatten(like: Tree, leaves: list[Any]) -> Tree:
    """Return a tree with the containers of `like` and these leaves, in the order of `items(like)`."""
    remaining = list(reversed(leaves))
    if len(remaining) != len(_leaves(like)):
        raise ValueError(f"tree.unflatten: got {len(leaves)} leaves for a tree of {len(_leaves(like))}")
    return map(lambda _: remaining.pop(), like)


def fitted(tree: Tree, like: Tree) -> Tree:
    """Return the leaves of a tree in the containers of another that has leaves at the same paths.

    Readers of files leave out what holds no leaves: `{}` of a layer without weights, `None`, the end of a
    list. This puts it back. A tree that has other paths is returned as it is, for its user to refuse.

    >>> fitted({"body": {"w": 1}}, {"body": {"w": 0, "b": None}, "dropout": {}})
    {'body': {'w': 1, 'b': None}, 'dropout': {}}
    """
    named = dict(items(tree))
    if named.keys() != set(paths(like)):
        return tree
    return map_with_path(lambda path, _: named[path], like)


def spec(tree: Tree) -> list[Any]:
    """Describe a tree of arrays in plain lists: containers, keys, field names, dtypes and shapes.

    Two trees are built alike exactly when `differences(spec(a), spec(b))` is empty. The description
    holds nothing but lists, strings and integers, so it can be written as JSON or msgpack.

    >>> spec({"w": mx.zeros((2, 3)), "state": None})
    ['dict', [['w', ['array', 'float32', [2, 3]]], ['state', ['none']]]]
    """
    if tree is None:
        return ["none"]
    if type(tree) is dict:
        return ["dict", [[key, spec(child)] for key, child in tree.items()]]
    if is_namedtuple(tree):
        fields = [[name, spec(child)] for name, child in zip(tree._fields, tree, strict=True)]
        return ["namedtuple", type(tree).__name__, fields]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, [spec(child) for child in tree]]
    if not isinstance(tree, mx.array):
        return ["other", type(tree).__name__]
    return ["array", dtype_name(tree.dtype), list(tree.shape)]


def dtype_name(dtype: mx.Dtype) -> str:
    """Return `float32` for `mx.float32`."""
    return str(dtype).rsplit(".", 1)[-1]


def alike(first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers, shapes and dtypes."""
    return matches(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, first, second)


def matches(same: Callable[[Any, Any], bool], first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers, and `same` says of every pair of leaves that it holds.

    >>> matches(lambda a, b: a < b, {"w": 1}, {"w": 2}), matches(lambda a, b: True, {"w": 1}, {"b": 2})
    (True, False)
    """
    found: list[bool] = []
    try:
        _map(lambda a, b: found.append(same(a, b)), first, (second,))
    except _DiffersError:
        return False
    return all(found)


def differences(
    got: list[Any], want: list[Any], got_name: str = "got", want_name: str = "want", *, cast: bool = False
) -> list[str]:
    """Say, a line a path, in what two specs differ; an empty list when they describe the same tree.

    With `cast`, floating-point arrays of different dtypes count as the same.
    """
    return list(_differing("", got, want, got_name, want_name, cast))


def _differing(path: str, a: list[Any], b: list[Any], name_a: str, name_b: str, cast: bool) -> Iterator[str]:
    shown = path or "the tree"
    if a[0] != b[0] or (a[0] == "namedtuple" and a[1] != b[1]):
        yield f"{shown} is {_describe(a)} in {name_a}, {_describe(b)} in {name_b}"
    elif a[0] == "array":
        if a[2] != b[2]:
            yield f"{shown} has shape {tuple(a[2])} in {name_a}, {tuple(b[2])} in {name_b}"
        if a[1] != b[1] and not (cast and {a[1], b[1]} <= _FLOATING):
            yield f"{shown} has dtype {a[1]} in {name_a}, {b[1]} in {name_b}"
    else:
        below_a, below_b = dict(spec_children(a)), dict(spec_children(b))
        for segment, child in below_a.items():
            if segment in below_b:
                yield from _differing(join(path, segment), child, below_b[segment], name_a, name_b, cast)
            else:
                yield f"{join(path, segment)} is in {name_a}, not in {name_b}"
        for segment in below_b:
            if segment not in below_a:
                yield f"{join(path, segment)} is in {name_b}, not in {name_a}"


def spec_items(spec: list[Any]) -> list[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Return the path, and the dtype's name and shape, of every array that a spec describes, in its order.

    >>> spec_items(spec({"w": mx.zeros((2, 3))}))
    [('w', ('float32', (2, 3)))]
    """
    return [
        (".".join(segments), (node[1], tuple(node[2])))
        for segments, node in spec_nodes(spec)
        if node[0] == "array"
    ]


def spec_nodes(
    spec: list[Any], segments: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Yield every node of a spec, containers before what they hold, with the segments of its path.

    >>> [segments for segments, _ in spec_nodes(spec({"w": (None,)}))]
    [(), ('w',), ('w', '0')]
    """
    yield segments, spec
    for segment, child in spec_children(spec):
        yield from spec_nodes(child, (*segments, segment))


def cast(tree: Tree, dtype: mx.Dtype) -> Tree:
    """Return the tree with its floating-point leaves in `dtype`; integer and boolean leaves stay."""
    return map(lambda x: x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x, tree)


def zeros_like(tree: Tree, dtype: mx.Dtype | None = None) -> Tree:
    """Return zeros of the same shapes, in `dtype` when given."""
    return map(lambda x: mx.zeros(x.shape, dtype or x.dtype), tree)


def where(condition: mx.array, on_true: Tree, on_false: Tree) -> Tree:
    """Choose between two trees leaf by leaf, by one 0-d boolean array."""
    return map(lambda a, b: mx.where(condition, a, b), on_true, on_false)


def norm(tree: Tree) -> mx.array:
    """Return the Euclidean norm of all leaves together, 0-d, summed in float32 whatever their dtypes."""
    small: list[mx.array] = []
    sums_of_squares: list[mx.array] = []
    for x in (leaf.astype(mx.float32) for leaf in leaves(tree)):
        if x.size <= _SMALL:
            small.append(x.reshape(-1))
        elif x.ndim > 1 and x.shape[0] <= _ROWS:
            sums_of_squares.append(sums.total(mx.square(x), range(1, x.ndim), chain=_CHAIN))
        else:
            sums_of_squares.append(sums.total(mx.square(x)).reshape(1))
    if small:
        sums_of_squares.append(mx.square(_joined(small)))
    # What is left of all leaves is added up together: each alone would cost several kernels to start.
    return scalars.root(sums.total(_joined(sums_of_squares))) if sums_of_squares else mx.array(0.0)


def _joined(vectors: list[mx.array]) -> mx.array:
    return mx.concatenate(vectors) if len(vectors) > 1 else vectors[0]


def added(terms: list[mx.array]) -> mx.array:
    """Return the sum of 0-d arrays, neighbours first: in order, a thousand of them would lose digits."""
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [a + b for a, b in pairs] + terms[len(terms) - len(terms) % 2 :]
    return terms[0] if terms else mx.array(0.0)


def size(tree: Tree) -> int:
    """Return the number of elements in all leaves together."""
    return sum(x.size for x in leaves(tree))


def _same_container(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return a.keys() == b.keys()
    return a is None or len(a) == len(b)


def _rebuild(like: Any, children: list[Any]) -> Any:
    return type(like)(*children) if is_namedtuple(like) else type(like)(children)


def _differs(path: str, first: Any, other: Any) -> ValueError:
    def shape(node: Any) -> str:
        below = children(node)
        if below is None:
            return "a leaf"
        keys = ", ".join(segment for segment, _ in below[:6]) + (", ..." if len(below) > 6 else "")
        return "None" if node is None else f"a {type(node).__name__} of ({keys})"

    return ValueError(
        f"tree.map: {path or 'the tree'} is {shape(first)} in the first tree, {shape(other)} in another"
    )


def spec_children(node: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return a spec's (path segment, child) pairs; none for an array or `None`."""
    kind = node[0]
    if kind == "dict":
        return [(key_segment(key), child) for key, child in node[1]]
    if kind == "namedtuple":
        return [(name, child) for name, child in node[2]]
    if kind in ("list", "tuple"):
        return [(str(index), child) for index, child in enumerate(node[1])]
    return []


def _describe(node: list[Any]) -> str:
    if node[0] == "array":
        return f"an array of {node[1]} {tuple(node[2])}"
    if node[0] == "namedtuple":
        return f"a {node[1]}"
    return "None" if node[0] == "none" else f"a {node[1] if node[0] == 'other' else node[0]}"
