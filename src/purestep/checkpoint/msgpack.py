"""States as bytes, in msgpack: for sockets, databases and files of your own."""

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import msgpack

from purestep._core import tree
from purestep._core.types import Tree
from purestep._steps.state import check_arrays
from purestep.checkpoint import checksum, device
from purestep.checkpoint.header import CorruptError, seal, unseal, verified
from purestep.checkpoint.restore import Rename, Stored, restore
from purestep.checkpoint.specs import DTYPES, leaf_specs, nbytes
from purestep.checkpoint.tensors import check_depth, evaluated

_MAGIC = "purestep"
_CHUNK = 1 << 30  # bytes; msgpack holds less than 4 GiB in one value
_BIN32 = struct.Struct(">BI")
_UNSIGNED: dict[int, Any] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # what buffers call integers of so many bytes


def to_bytes(state: Tree) -> bytes:
    """Turn a state, or any tree of arrays, into bytes.

    One msgpack array: the word `purestep`, a sealed JSON header with the tree and a checksum of each leaf,
    and the leaves' bytes, little-endian, in pieces of at most 1 GiB. Takes no more memory than the result and
    an eighth of it.

    Raises:
        TypeError: for a leaf that is not an array, with its path.

    >>> data = to_bytes({"w": mx.array([1.0, 2.0])})
    >>> from_bytes(data, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    check_arrays("checkpoint.to_bytes", "state", state)
    check_depth("checkpoint.to_bytes", state)
    arrays = evaluated(state)
    try:
        return _packed(arrays, tree.to_plain(tree.spec(state)))
    finally:
        arrays.clear()
        device.trim()


def from_bytes(
    data: bytes | bytearray | memoryview,
    *,
    like: Tree = None,
    cast: bool = False,
    partial: Iterable[str] = (),
    rename: Rename | None = None,
) -> Tree:
    """Turn the bytes of `to_bytes` into a tree, every byte verified.

    Takes as much memory as the data again, most of which the arrays returned keep, and once more the largest
    array; data that is not sound never takes more than twice its size, whatever it says of itself.

    Args:
        data: what `to_bytes` returned.
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
        HyperparameterWarning: for a constant hyperparameter that differs from that of `like`, as in `load`.

    >>> from_bytes(to_bytes([mx.array(1), None]))
    [array(1, dtype=int32), None]
    """
    where = "checkpoint.from_bytes"
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"{where}: data must be bytes, as to_bytes returns, got {type(data).__name__}")
    header, chunks = _unpack(where, data)
    chunks.reverse()
    content = unseal(where, "data", header)
    leaves = leaf_specs(where, "data", content.get("tree"))
    sums = content.get("checksums")
    if not isinstance(sums, dict) or sums.keys() != leaves.keys():
        raise CorruptError(f"{where}: data is damaged: its header does not name the same arrays twice")
    if sum(_pieces(nbytes(*leaf)) for leaf in leaves.values()) != len(chunks):
        raise CorruptError(f"{where}: data is damaged: it does not hold the arrays its header names")

    def read(paths: list[str]) -> dict[str, mx.array]:
        wanted = set(paths)
        found = {}
        for path, (dtype, shape) in leaves.items():  # the order of the chunks
            whole = _joined(chunks, _pieces(nbytes(dtype, shape)))
            if len(whole) != nbytes(dtype, shape) or not verified(where, path, str(sums[path]), whole):
                raise CorruptError(f"{where}: data is damaged: {path} is not as it was written")
            if path in wanted:
                found[path] = device.placed(_array(whole, DTYPES[dtype], shape))
        device.evaluate(found.values())
        device.trim()
        return found

    stored = Stored("data", content["tree"], read)
    return restore(where, stored, like, cast=cast, partial=partial, rename=rename)


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


def _unpack(where: str, data: bytes | bytearray | memoryview) -> tuple[str, list[bytes]]:
    def only(values: list[Any]) -> list[Any]:
        # Called as each list ends, so a list within the list is met first, and never kept.
        whole = values[:1] == [_MAGIC] and len(values) >= 2 and isinstance(values[1], str)
        if not whole or not all(isinstance(chunk, bytes) for chunk in values[2:]):
            raise CorruptError(f"{where}: data was not written by purestep.checkpoint")
        return values

    try:
        # A list costs 8 bytes an entry before any is read: an honest one has far fewer than bytes / 8.
        unpacked = msgpack.unpackb(
            data,
            list_hook=only,
            max_bin_len=_CHUNK,
            max_map_len=0,
            max_ext_len=0,
            max_array_len=memoryview(data).nbytes // 8,
        )
    except CorruptError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise CorruptError(f"{where}: data is cut or was not written by purestep ({error})") from None
    if not isinstance(unpacked, list):
        raise CorruptError(f"{where}: data was not written by purestep.checkpoint")
    return unpacked[1], unpacked[2:]


def _pieces(size: int) -> int:
    return -(-size // _CHUNK)


def _chunks(array: mx.array) -> Iterator[memoryview]:
    raw = checksum.raw(array)
    # Neither complex numbers nor empty axes can be seen as bytes without a copy.
    seen = array.size > 0 and array.dtype != mx.complex64
    data = raw.cast("B") if seen else memoryview(bytes(raw))
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _joined(chunks: list[bytes], count: int) -> bytes:
    pieces = [chunks.pop() for _ in range(count)]
    return pieces[0] if count == 1 else b"".join(pieces)


def _array(data: bytes, dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    with mx.stream(mx.cpu):  # no GPU has doubles
        if not data:
            return mx.zeros(shape, dtype)
        # In its shape from the start: no axis of more than 2^31 elements can be, not even for a moment.
        raw: Any = memoryview(data).cast("B").cast(_UNSIGNED[dtype.size], shape or (1,))
        array = mx.array(raw).view(dtype).reshape(shape)
        mx.eval(array)
        return array
