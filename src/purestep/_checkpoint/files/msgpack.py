"""Convert states to bytes and back, in msgpack."""

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, overload

import mlx.core as mx
import msgpack

from purestep._checkpoint.disk import device
from purestep._checkpoint.disk.tensors import check_storable, evaluated
from purestep._checkpoint.format import checksum, outline, scan
from purestep._checkpoint.format.header import (
    CorruptError,
    SealedText,
    described,
    open_sealed,
    seal,
    verified,
)
from purestep._checkpoint.format.scan import ScanError
from purestep._checkpoint.format.specs import DTYPES, leaf_specs, nbytes
from purestep._checkpoint.restoring.restore import Rename, StoredTree, Template, restore
from purestep._core import tree
from purestep._core.packing import unpacked
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

_MAGIC = "purestep"
_CHUNK = 1 << 30  # bytes; msgpack holds less than 4 GiB in one value
_BIN32 = struct.Struct(">BI")
_LONGEST_SUM = 100  # bytes, of a checksum
# Of each kind of value: the first byte of a short one and the bits of its length; and of how many bytes the
# length is, by the first byte of a longer one.
_KINDS: dict[str, tuple[int, int, dict[int, int]]] = {
    "array": (0x90, 0x0F, {0xDC: 2, 0xDD: 4}),
    "str": (0xA0, 0x1F, {0xD9: 1, 0xDA: 2, 0xDB: 4}),
    "bin": (0, 0, {0xC4: 1, 0xC5: 2, 0xC6: 4}),
}
_UNSIGNED: dict[int, Any] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # what buffers call integers of so many bytes


def to_bytes(state: Tree) -> bytes:
    """Turn a state, or any tree of arrays, into bytes.

    The result is one msgpack array: the word `purestep`, a sealed JSON header with the tree and a checksum of
    each leaf, and the bytes of the leaves, little-endian, in pieces of at most 1 GiB. The peak memory is
    1.125 times the size of the result.

    Raises:
        TypeError: for a leaf that is not an array, with its path.
        ValueError: for an array of more than 64 axes, a path of more than 10,000 characters, or more than 100
            containers within one another.

    >>> data = to_bytes({"w": mx.array([1.0, 2.0])})
    >>> from_bytes(data, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    check_arrays("checkpoint.to_bytes", "state", state)
    state = unpacked(state)
    check_storable("checkpoint.to_bytes", state)
    arrays = evaluated(dict(tree.items(state)))
    try:
        return _packed(arrays, tree.to_plain(tree.spec(state)))
    finally:
        arrays.clear()
        device.trim()


@overload
def from_bytes(
    data: bytes | bytearray | memoryview,
    *,
    like: None = None,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
) -> Tree: ...


@overload
def from_bytes(
    data: bytes | bytearray | memoryview,
    *,
    like: Template,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
) -> Template: ...


def from_bytes(
    data: bytes | bytearray | memoryview,
    *,
    like: Tree = None,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
) -> Tree:
    """Turn the bytes of `to_bytes` into a tree, every byte verified.

    Memory: the size of the data, which the arrays of the result keep; an array of more than 1 GiB once more;
    and about 1 kB for each array and container. Damaged data never takes more than twice its size.

    Args:
        data: the result of `to_bytes`.
        like: a tree with the structure, shapes and dtypes that the data must have; without it, plain
            dicts, lists and tuples are returned.
        cast: accept floating-point arrays of other dtypes, as in `load`.
        partial: patterns of paths that may be missing, extra or of another shape, as in `load`.
        rename: from names in the data to names in the template, as in `load`.

    Raises:
        TypeError: for data that is not bytes.
        CorruptError: (a ValueError) if the data is cut, changed or foreign.
        ValueError: if it differs from the template, with every differing path.

    Warns:
        HyperparameterWarning: if a constant hyperparameter differs from that of `like`, as in `load`.

    >>> from_bytes(to_bytes([mx.array(1), None]))
    [array(1, dtype=int32), None]
    """
    caller = "checkpoint.from_bytes"
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"{caller}: data must be bytes, as to_bytes returns, got {type(data).__name__}")
    header, chunks = _unpacked(caller, memoryview(data))
    text = open_sealed(caller, "data", header)
    described(caller, "data", text)
    # Everything is verified before objects are made from it.
    try:
        _verify(caller, text, chunks())
    except (ValueError, StopIteration):
        if sum(_pieces(nbytes(node.name, node.shape)) for node in _arrays(text)) == sum(1 for _ in chunks()):
            raise
        raise CorruptError(
            f"{caller}: data is damaged: it does not hold the arrays its header names"
        ) from None
    spec = outline.built(text.text, *text.members["tree"])
    leaves = leaf_specs(caller, "data", spec)
    pieces = chunks()
    places = {path: [next(pieces) for _ in range(_pieces(nbytes(*leaf)))] for path, leaf in leaves.items()}

    def read(paths: list[str]) -> dict[str, mx.array]:
        found = {}
        for path in paths:
            dtype, shape = leaves[path]
            found[path] = device.placed(_array(_joined(places.pop(path)), DTYPES[dtype], shape))
        device.evaluate(found.values())
        device.trim()
        return found

    stored = StoredTree("data", spec, leaves, read)
    return restore(caller, stored, like, cast=cast, partial=partial, rename=rename)


def is_packed(path: Path) -> bool:
    """Tell whether a file starts as the result of `to_bytes`."""
    with path.open("rb") as file:
        return b"\xa8" + _MAGIC.encode() in file.read(16)


def _packed(arrays: dict[str, mx.array], spec: Any) -> bytes:
    sums = {path: checksum.of(checksum.raw(array)) for path, array in arrays.items()}
    header = seal({"tree": spec, "checksums": sums})
    count = sum(_pieces(array.nbytes) for array in arrays.values())
    packer, packed = msgpack.Packer(), io.BytesIO()
    packed.write(packer.pack_array_header(2 + count))
    packed.write(packer.pack(_MAGIC))
    packed.write(packer.pack(header))
    for array in arrays.values():
        for chunk in _chunks(array):
            # Packing would hold the chunk three times, and msgpack has no call for its header alone.
            packed.write(_BIN32.pack(0xC6, len(chunk)))
            packed.write(chunk)
    return packed.getvalue()


def _unpacked(caller: str, data: memoryview) -> tuple[memoryview, Callable[[], Iterator[memoryview]]]:
    """Return the header, and a function that yields the pieces of the arrays, all without a copy."""
    data = data.cast("B") if data.c_contiguous else memoryview(bytes(data))
    try:
        count, at = _head(data, 0, "array")
        words = []
        for _ in range(2):
            size, at = _head(data, at, "str")
            words.append(data[at : at + size])
            at += size
        if count < 2 or words[0] != _MAGIC.encode():
            raise _ForeignError
        start = at
        for _ in range(count - 2):
            size, at = _head(data, at, "bin")
            at += size
        if at != len(data):
            raise _ForeignError
    except _ForeignError:
        raise CorruptError(f"{caller}: data is cut or was not written by purestep") from None

    def chunks() -> Iterator[memoryview]:
        at = start
        for _ in range(count - 2):
            size, at = _head(data, at, "bin")
            yield data[at : at + size]
            at += size

    return words[1], chunks


class _ForeignError(Exception):
    """There is another value than `to_bytes` writes there, or not all of it."""


def _head(data: memoryview, at: int, kind: str) -> tuple[int, int]:
    """Return the length of a value of msgpack that must be of this kind, and where its content starts.

    Here rather than by msgpack, which makes room for every entry of a list that says it has some.
    """
    if at >= len(data):
        raise _ForeignError
    first, (short, mask, long) = data[at], _KINDS[kind]
    if mask and first & ~mask & 0xFF == short:
        return first & mask, at + 1
    if first not in long:
        raise _ForeignError
    width = long[first]
    size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if at + 1 + width + (size if kind != "array" else 0) > len(data):
        raise _ForeignError
    return size, at + 1 + width


def _arrays(text: SealedText) -> Iterator[outline.ScannedNode]:
    return (node for node in outline.walk(text.text, *text.members["tree"]) if node.kind == "array")


def _verify(caller: str, text: SealedText, chunks: Iterator[memoryview]) -> None:
    """Check the bytes of every array: the tree, the checksums and the bytes are in one order.

    Raises:
        StopIteration: if there are more or fewer pieces than the tree needs.
        CorruptError: for any other damage.
    """
    try:
        sums = scan.members(text.text, *text.members["checksums"])
        for node, found in zip_longest(_arrays(text), sums):
            if node is None or found is None or node.path != found[0] or found[2] - found[1] > _LONGEST_SUM:
                raise ScanError("other paths")
            size = nbytes(node.name, node.shape)
            whole = _joined([next(chunks) for _ in range(_pieces(size))])
            expected = scan.string(text.text, *found[1:])
            if len(whole) != size or not verified(caller, node.path, expected, whole):
                raise CorruptError(
                    f"{caller}: data is damaged: {node.path or 'the array'} is not as it was written"
                )
        if next(chunks, None) is not None:
            raise StopIteration
    except (ScanError, KeyError):
        raise CorruptError(
            f"{caller}: data is damaged: its header does not name the same arrays twice"
        ) from None


def _pieces(size: int) -> int:
    return -(-size // _CHUNK)


def _chunks(array: mx.array) -> Iterator[memoryview]:
    raw = checksum.raw(array)
    # Neither complex numbers nor empty axes can be seen as bytes without a copy.
    seen = array.size > 0 and array.dtype != mx.complex64
    data = raw.cast("B") if seen else memoryview(bytes(raw))
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _joined(pieces: list[memoryview]) -> Any:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _array(data: Any, dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    """Return an array that is evaluated with others later, since an evaluation takes longer than its copy."""
    with mx.stream(mx.cpu):  # GPUs have no float64
        if not data:
            return mx.zeros(shape, dtype)
        # In its shape from the start: no axis of more than 2^31 elements can be, not even for a moment.
        raw: Any = memoryview(data).cast("B").cast(_UNSIGNED[dtype.size], shape or (1,))
        return mx.array(raw).view(dtype).reshape(shape)
