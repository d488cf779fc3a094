"""Check the JSON text of a tree's spec, and build the spec only if it is valid.

    ["dict",[["w",["array","float32",[2,3]]],["b",["none"]]]]

The text has the form of `json.dumps` without blanks, as purestep writes it.
"""

import re
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from purestep._checkpoint.format import scan
from purestep._checkpoint.format.kinds import is_kind, nbytes
from purestep._checkpoint.format.scan import ScanError, Text
from purestep._core import tree

DEEPEST = 100  # containers within containers
LONGEST = 10_000  # characters of a path

_NODE = re.compile(
    rb'\["(none)"\]|\["(array)","(\w{1,20})",\[([^\[\]]{0,2700})\]\]'
    rb'|\["(list|tuple|dict)",\[|\["(namedtuple)",(' + scan.STRING + rb"),\["
)
_KEY = re.compile(rb"\[(" + scan.STRING + rb"|-?\d{1,4300}),")
_TYPES = {"dict": "dict", "list": "list", "tuple": "tuple", "none": "NoneType", "namedtuple": ""}
# An array whose key, if it has one, and shape are written as most are.
_SHAPE = rb"((?:[0-9]{1,18}(?:,[0-9]{1,18}){0,63})?)"
_ARRAY = rb'\["array","(\w{1,20})",\[' + _SHAPE + rb"\]\]"
_PLAIN_ARRAY = re.compile(rb"()" + _ARRAY + rb"(,?)")
_KEYED_ARRAY = re.compile(rb'\["([^"\\\x00-\x1f\x80-\xff]{0,1000})",' + _ARRAY + rb"\](,?)")
_SHORT = 1000  # characters of a path that each container keeps
_LONGEST_KEY = 12 * LONGEST + 20  # bytes: a character takes up to twelve


class ScannedNode(NamedTuple):
    """One node of a description.

    Attributes:
        depth: the number of containers around it.
        key: in a dict or NamedTuple; the place in a list or tuple.
        keyed: whether it is in a dict or NamedTuple.
        kind: the first string of its description.
        name: of the dtype, or of the NamedTuple's type.
        shape: of an array.
        path: of an array.
        empty: whether it has no children.
    """

    depth: int
    key: Any
    keyed: bool
    kind: str
    name: str = ""
    shape: tuple[int, ...] = ()
    path: str = ""
    empty: bool = True


class _Container:
    """A container around the current place of a walk."""

    def __init__(self, kind: str):
        self.kind = kind
        self.keyed = kind in ("dict", "namedtuple")
        self.count = 0
        self.segment = ""  # of the path, to the child where the walk is
        self.hashes = array("q")  # of keys
        self.above: str | None = None  # the path of the container and a dot, if it is short
        self.common = _KEYED_ARRAY if self.keyed else _PLAIN_ARRAY

    def enter(self, key: Any) -> None:
        """Note the key of the next child, or its place."""
        self.count += 1
        if not self.keyed:
            self.segment = str(key)
            return
        if self.kind == "dict":
            self.segment = tree.key_segment(key)
        elif isinstance(key, str) and key.isidentifier():
            self.segment = key
        else:
            raise ScanError("a field has an invalid name")
        self.hashes.append(hash(repr(key)))  # hash("") is hash(0), and hash(-1) is hash(-2)


def walk(data: Text, start: int, stop: int, *, distinct: bool = False) -> Iterator[ScannedNode]:
    """Yield every node in little memory; a container comes before its children.

    With `distinct`, which takes eight bytes for each key, a container with a repeated key is refused.

    Raises:
        ScanError: at the first place where the text does not describe a tree.

    >>> text = b'["list",[["none"],["array","float32",[2]]]]'
    >>> [(node.kind, node.path) for node in walk(text, 0, len(text))]
    [('list', ''), ('none', ''), ('array', '1')]
    """
    around: list[_Container] = []
    at = start
    while True:
        key, keyed, depth = None, False, len(around)
        found = around[-1].common.match(data, at, stop) if around else None
        if found:
            name, dtype, lengths, comma = found.groups()
            key = name.decode() if around[-1].keyed else around[-1].count
            around[-1].enter(key)
            at = found.end()
            yield _array(around, key, dtype, lengths)
            if comma:
                continue
            at -= around[-1].keyed  # The end of the pair is read below.
        else:
            if around:
                key, at = _entered(data, at, stop, around[-1])
                keyed = around[-1].keyed
                around[-1].enter(key)
            found = _NODE.match(data, at, stop)
            if not found or found.end() - at > _LONGEST_KEY:
                raise ScanError("there is no node")
            at = found.end()
            if found[1]:
                yield ScannedNode(depth, key, keyed, "none")
            elif found[2]:
                yield _array(around, key, found[3], found[4])
            else:
                kind = (found[5] or found[6]).decode()
                name = scan.string(data, *found.span(7)) if found[7] else ""
                empty = data[at : at + 1] == b"]"
                yield ScannedNode(depth, key, keyed, kind, name, empty=empty)
                if not empty:
                    around.append(_Container(kind))
                    if len(around) > DEEPEST:
                        raise ScanError("it is too deep")
                    continue
                at = _passed(data, at, stop, b"]]")
        # A node is followed by the end of its pair, then a comma or the end of its container.
        while around:
            if around[-1].keyed:
                at = _passed(data, at, stop, b"]")
            if data[at : at + 1] == b",":
                at += 1
                break
            at = _passed(data, at, stop, b"]]")
            hashes = around.pop().hashes
            if distinct and not scan.distinct(hashes):
                raise ScanError("a key occurs twice")
        if not around:
            break
    if at != stop:
        raise ScanError("it goes on after its end")


class Extent(NamedTuple):
    """Totals of a header: arrays, the characters of their paths, their bytes."""

    arrays: int = 0
    characters: int = 0
    bytes: int = 0


def extent(data: Text, start: int, stop: int) -> Extent:
    """Return the totals of a description.

    Raises:
        ScanError: if the text does not describe a tree.
        LookupError: for an array with an unknown dtype or an invalid shape, with its path.
    """
    arrays = characters = size = 0
    for node in walk(data, start, stop, distinct=True):
        if node.kind == "array":
            if not is_kind(node.name, node.shape):
                raise LookupError(node.path)
            arrays += 1
            characters += len(node.path)
            size += nbytes(node.name, node.shape)
    return Extent(arrays, characters, size)


def built(data: Text, start: int, stop: int) -> tree.Spec:
    """Return the spec in a text; equal shapes, names and nodes without children are shared."""
    around: list[tuple[ScannedNode, list[tuple[Any, tree.Spec]]]] = []
    shared: dict[Any, Any] = {}
    top: list[tuple[Any, tree.Spec]] = []
    for node in walk(data, start, stop):
        while len(around) > node.depth:
            _close(around, top)
        if node.kind == "array":
            dtype, shape = (shared.setdefault(value, value) for value in (node.name, node.shape))
            spec: tree.Spec = tree.ArraySpec(dtype, shape)
        elif node.empty:
            spec = tree.NodeSpec(node.kind, node.name or _TYPES[node.kind])
            spec = shared.setdefault(spec, spec)
        else:
            around.append((node, []))
            continue
        (around[-1][1] if around else top).append((node.key, spec))
    while around:
        _close(around, top)
    return top[0][1]


def _close(
    around: list[tuple[ScannedNode, list[tuple[Any, tree.Spec]]]], top: list[tuple[Any, tree.Spec]]
) -> None:
    """Make the innermost container from its children, and add it to the one around it."""
    node, children = around.pop()
    spec = tree.NodeSpec(node.kind, node.name or _TYPES[node.kind], tuple(children))
    (around[-1][1] if around else top).append((node.key, spec))


def _array(around: list[_Container], key: Any, dtype: bytes, lengths: bytes) -> ScannedNode:
    shape = tuple(map(_length, lengths.split(b","))) if lengths else ()
    if not around:
        return ScannedNode(0, key, False, "array", dtype.decode(), shape, "")
    inner = around[-1]
    above = inner.above
    if above is None:
        above = "".join([container.segment + "." for container in around[:-1]])
        inner.above = above if len(above) <= _SHORT else None
    return ScannedNode(len(around), key, inner.keyed, "array", dtype.decode(), shape, above + inner.segment)


def _length(digits: bytes) -> int:
    return int(digits) if digits.isdigit() else -1


def _entered(data: Text, at: int, stop: int, container: _Container) -> tuple[Any, int]:
    """Return the key of the next child, or its place, and where its node starts."""
    if not container.keyed:
        return container.count, at
    found = _KEY.match(data, at, min(stop, at + _LONGEST_KEY))
    if not found:
        raise ScanError("there is no key, or a long one")
    key = scan.string(data, *found.span(1)) if data[found.start(1)] == 0x22 else int(found[1])
    return key, found.end()


def _passed(data: Text, at: int, stop: int, mark: bytes) -> int:
    if at + len(mark) > stop or data[at : at + len(mark)] != mark:
        raise ScanError(f"{mark.decode()} is missing")
    return at + len(mark)
