"""Checksums of buffers, as `algorithm:hex`."""

import zlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx

try:
    import xxhash
except ModuleNotFoundError:  # an extra: `pip install "purestep[fast]"`
    xxhash = None

# xxh3_128 runs at the speed of memory; CRC-32 is in every Python, some seven times slower.
_KNOWN: dict[str, Callable[[Any], str]] = {"crc32": lambda data: f"{zlib.crc32(data):08x}"}
if xxhash is not None:
    _KNOWN["xxh3_128"] = xxhash.xxh3_128_hexdigest
_OPTIONAL = {"xxh3_128": "xxhash is not installed: pip install 'purestep[fast]'"}


def of(data: Any) -> str:
    """Return `algorithm:hex` of a contiguous buffer, with the fastest installed algorithm.

    >>> matches(of(b"abc"), b"abc"), matches(of(b"abc"), b"abd")
    (True, False)
    """
    algorithm = "crc32" if xxhash is None else "xxh3_128"
    return f"{algorithm}:{_KNOWN[algorithm](data)}"


def matches(checksum: str, data: Any) -> bool:
    """Tell whether a buffer has this checksum.

    Raises:
        LookupError: if the algorithm is unknown or not installed; the message says what to install.
    """
    algorithm, _, digest = checksum.partition(":")
    if algorithm not in _KNOWN:
        raise LookupError(_OPTIONAL.get(algorithm, f"there is no checksum {algorithm[:20]!r}"))
    return _KNOWN[algorithm](data) == digest


def raw(array: mx.array) -> Any:
    """Return the bytes of an evaluated, contiguous array as a buffer, without a copy."""
    # The buffer protocol has no bfloat16, and MLX's type stubs do not declare arrays as buffers.
    seen: Any = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return memoryview(seen)
