"""States as bytes, in msgpack: for sockets, databases and files of your own."""

from typing import Any

import mlx.core as mx
import msgpack

from purestep import tree
from purestep.checkpoint.header import check, header
from purestep.state import check_arrays
from purestep.types import Tree

_CHUNK = 1 << 30  # bytes; msgpack holds less than 4 GiB in one value


def to_bytes(state: Tree) -> bytes:
    """Turn a state, or any tree of arrays, into bytes.

    Raises:
        TypeError: for a leaf that is not an array, with its path.

    >>> data = to_bytes({"w": mx.array([1.0, 2.0])})
    >>> from_bytes(data, like={"w": mx.zeros(2)})
    {'w': array([1, 2], dtype=float32)}
    """
    check_arrays("checkpoint.to_bytes", "state", state)
    leaves = tree.leaves(state)
    mx.eval(leaves)
    packed = msgpack.packb({**header(state), "leaves": [_chunks(leaf) for leaf in leaves]})
    assert packed is not None
    return packed


def from_bytes(data: bytes, *, like: Tree) -> Tree:
    """Turn the bytes of `to_bytes` into a tree built like a template.

    Args:
        data: what `to_bytes` returned.
        like: a tree with the structure, shapes and dtypes that the data must have.

    Raises:
        ValueError: if the data is truncated or foreign, or differs from the template, with every
            differing path.
    """
    where = "checkpoint.from_bytes"
    check_arrays(where, "like", like)
    try:
        stored = msgpack.unpackb(data, max_bin_len=_CHUNK)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"{where}: data is truncated or not msgpack ({error})") from None
    check(where, "data", stored, like)
    named, chunks = tree.items(like), stored.get("leaves")
    if not isinstance(chunks, list) or len(chunks) != len(named):
        raise ValueError(f"{where}: data is damaged: it must hold {len(named)} leaves")
    # The order of dict keys is the writer's; leaves are matched by path.
    by_path = dict(zip(tree.spec_paths(stored["tree"]), chunks, strict=True))
    return tree.unflatten(like, [_array(where, path, by_path[path], leaf) for path, leaf in named])


def _chunks(leaf: mx.array) -> list[bytes]:
    # Buffers know no bfloat16; and MLX's type stubs do not say that arrays are buffers.
    raw: Any = leaf.view(mx.uint16) if leaf.dtype == mx.bfloat16 else leaf
    data = memoryview(bytes(memoryview(raw)))
    return [bytes(data[start : start + _CHUNK]) for start in range(0, len(data), _CHUNK)]


def _array(where: str, path: str, chunks: Any, like: mx.array) -> mx.array:
    if not isinstance(chunks, list) or not all(isinstance(chunk, bytes) for chunk in chunks):
        raise ValueError(f"{where}: data is damaged: {path} does not hold bytes")
    data = b"".join(chunks)
    if len(data) != like.nbytes:
        raise ValueError(f"{where}: data is damaged: {path} must hold {like.nbytes} bytes, got {len(data)}")
    if not data:
        return mx.zeros(like.shape, like.dtype)
    raw: Any = memoryview(data)
    return mx.array(raw).view(like.dtype).reshape(like.shape)
