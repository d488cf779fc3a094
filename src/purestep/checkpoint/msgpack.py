"""States as bytes, in msgpack: for sockets, databases and files of your own."""

from collections.abc import Collection
from typing import Any

import mlx.core as mx
import msgpack

from purestep import tree
from purestep.checkpoint import checksum
from purestep.checkpoint.header import CorruptError, seal, unseal, verified
from purestep.checkpoint.restore import Rename, Stored, leaf_specs, restore
from purestep.checkpoint.tensors import snapshot
from purestep.state import check_arrays
from purestep.types import Tree

_MAGIC = "purestep"
_DTYPES = {tree.dtype_name(kind): kind for kind in vars(mx).values() if isinstance(kind, mx.Dtype)}
_CHUNK = 1 << 30  # bytes; msgpack holds less than 4 GiB in one value


def to_bytes(state: Tree) -> bytes:
    """Turn a state, or any tree of arrays, into bytes.

    One msgpack array: the word `purestep`, a sealed JSON header with the tree and a checksum of each leaf,
    and the leaves' bytes, little-endian, in pieces of at most 1 GiB.

    Raises:
        TypeError: for a leaf that is not an array, with its path.

    >>> data = to_bytes({"w": mx.array([1.0, 2.0])})
    >>> from_bytes(data, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    check_arrays("checkpoint.to_bytes", "state", state)
    arrays = snapshot(state)
    sums = {path: checksum.of(checksum.raw(array)) for path, array in arrays.items()}
    header = seal({"tree": tree.spec(state), "checksums": sums})
    chunks = [chunk for array in arrays.values() for chunk in _chunks(array)]
    packed = msgpack.packb([_MAGIC, header, *chunks])
    assert packed is not None
    return packed


def from_bytes(
    data: bytes,
    *,
    like: Tree = None,
    cast: bool = False,
    partial: Collection[str] = (),
    rename: Rename | None = None,
) -> Tree:
    """Turn the bytes of `to_bytes` into a tree, every byte verified.

    Never takes more memory than the data and the arrays in it, whatever the data says of itself.

    Args:
        data: what `to_bytes` returned.
        like: a tree with the structure, shapes and dtypes that the data must have; without it, plain
            dicts, lists and tuples are returned.
        cast: accept floating-point arrays of other dtypes, as in `load`.
        partial: patterns of paths that may be missing, extra or of another shape, as in `load`.
        rename: from names in the data to names in the template, as in `load`.

    Raises:
        CorruptError: (a ValueError) if the data is cut, changed or foreign.
        ValueError: if it differs from the template, with every differing path.

    >>> from_bytes(to_bytes([mx.array(1), None]))
    [array(1, dtype=int32), None]
    """
    where = "checkpoint.from_bytes"
    header, chunks = _unpack(where, data)
    chunks.reverse()
    content = unseal(where, "data", header)
    leaves = leaf_specs(where, "data", content.get("tree"))
    sums = content.get("checksums")
    sizes = {path: _size(dtype, shape) for path, (dtype, shape) in leaves.items()}
    if not isinstance(sums, dict) or sums.keys() != leaves.keys() or None in sizes.values():
        raise CorruptError(f"{where}: data is damaged: its header does not describe arrays")
    counts = {path: -(-(size or 0) // _CHUNK) for path, size in sizes.items()}
    if sum(counts.values()) != len(chunks):
        raise CorruptError(f"{where}: data is damaged: it does not hold the arrays its header names")

    def read(paths: list[str]) -> dict[str, mx.array]:
        found = {}
        for path, (dtype, shape) in leaves.items():  # the order of the chunks
            pieces = [chunks.pop() for _ in range(counts[path])]
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if len(whole) != sizes[path] or not verified(where, path, str(sums[path]), whole):
                raise CorruptError(f"{where}: data is damaged: {path} is not as it was written")
            if path in paths:
                found[path] = _array(whole, _DTYPES[dtype], shape)
        mx.eval(found)
        return found

    stored = Stored("data", content["tree"], read)
    return restore(where, stored, like, cast=cast, partial=partial, rename=rename)


def _unpack(where: str, data: bytes) -> tuple[str, list[bytes]]:
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
            max_array_len=len(data) // 8,
        )
    except CorruptError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise CorruptError(f"{where}: data is cut or was not written by purestep ({error})") from None
    if not isinstance(unpacked, list):
        raise CorruptError(f"{where}: data was not written by purestep.checkpoint")
    return unpacked[1], unpacked[2:]


def _chunks(array: mx.array) -> list[bytes]:
    data = memoryview(bytes(checksum.raw(array)))
    return [bytes(data[start : start + _CHUNK]) for start in range(0, len(data), _CHUNK)]


def _size(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the bytes of an array, or `None` for a dtype or shape that there is not."""
    if dtype not in _DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        return None
    size = _DTYPES[dtype].size
    for n in shape:
        size *= n
    return size


def _array(data: bytes, dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    if not data:
        return mx.zeros(shape, dtype)
    raw: Any = memoryview(data)
    return mx.array(raw).view(dtype).reshape(shape)
