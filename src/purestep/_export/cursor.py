"""Read and write the numbers of a file of `mx.export_function`: little-endian, one after another."""

import struct
from collections.abc import Iterable

import mlx.core as mx

# In the order of MLX's numbers for them.
_DTYPES = (
    mx.bool_,
    mx.uint8,
    mx.uint16,
    mx.uint32,
    mx.uint64,
    mx.int8,
    mx.int16,
    mx.int32,
    mx.int64,
    mx.float16,
    mx.float32,
    mx.float64,
    mx.bfloat16,
    mx.complex64,
)
Form = tuple[tuple[int, ...], mx.Dtype]
"""The shape and dtype of an array."""


class EndError(ValueError):
    """The bytes end within a number, or hold one that cannot be there."""


class Cursor:
    """A place in the bytes of a file.

    >>> cursor = Cursor(longs([7, 8]))
    >>> cursor.longs(), cursor.at
    ([7, 8], 24)
    """

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """Return the next bytes, and move past them."""
        if not 0 <= count <= len(self.data) - self.at:
            raise EndError(f"{count} bytes at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """Return a truth value, 0 or 1."""
        value = self.take(1)[0]
        if value > 1:
            raise EndError(f"{value} for a truth value at {self.at - 1}")
        return value

    def short(self) -> int:
        """Return a 32-bit number."""
        return struct.unpack("<i", self.take(4))[0]

    def long(self) -> int:
        """Return a 64-bit number, such as the length of a list."""
        return struct.unpack("<Q", self.take(8))[0]

    def longs(self) -> list[int]:
        """Return a list of 64-bit numbers, such as the numbers of arrays."""
        count = self.long()
        return list(struct.unpack(f"<{count}Q", self.take(8 * count)))

    def text(self) -> str:
        """Return a text."""
        return self.take(self.long()).decode()

    def form(self) -> Form:
        """Return a shape and a dtype."""
        return self.shape(), self.dtype()

    def shape(self) -> tuple[int, ...]:
        """Return a shape."""
        count = self.long()
        return struct.unpack(f"<{count}i", self.take(4 * count))

    def dtype(self) -> mx.Dtype:
        """Return a dtype, which is written as its number and its bytes."""
        number, size = self.short(), self.take(1)[0]
        if not 0 <= number < len(_DTYPES) or _DTYPES[number].size != size:
            raise EndError(f"dtype {number} of {size} bytes at {self.at}")
        return _DTYPES[number]


def long(value: int) -> bytes:
    """Return a 64-bit number as bytes."""
    return struct.pack("<Q", value)


def longs(values: Iterable[int]) -> bytes:
    """Return a list of 64-bit numbers as bytes."""
    values = list(values)
    return struct.pack(f"<Q{len(values)}Q", len(values), *values)


def text(value: str) -> bytes:
    """Return a text as bytes."""
    encoded = value.encode()
    return long(len(encoded)) + encoded


def shape(value: tuple[int, ...]) -> bytes:
    """Return a shape as bytes."""
    return struct.pack(f"<Q{len(value)}i", len(value), *value)


def dtype(value: mx.Dtype) -> bytes:
    """Return a dtype as bytes."""
    return struct.pack("<iB", _DTYPES.index(value), value.size)


def form(value: Form) -> bytes:
    """Return a shape and a dtype as bytes."""
    return shape(value[0]) + dtype(value[1])
