"""Pictures as PNG files in memory."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: PNG's color type


class Picture(NamedTuple):
    """A PNG file.

    Attributes:
        png: its bytes.
        width: pixels.
        height: pixels.
    """

    png: bytes
    width: int
    height: int


def picture_of(caller: str, image: Any) -> Picture:
    """Return a picture of a PNG file, of its bytes, or of an array.

    Args:
        caller: for errors.
        image: a path; bytes; or an array of shape `[height, width]` or `[height, width, channels]` with 1 to
            4 channels: grey, grey and alpha, RGB, RGBA. Its dtype is uint8, or floating with values in
            [0, 1].

    Raises:
        ValueError: if it is no PNG file, or an array of another shape, dtype or range.
        OSError: if the file cannot be read.

    >>> picture_of("tracker", mx.zeros((2, 3)))[1:]
    (3, 2)
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(caller, Path(image).read_bytes(), str(image))
    if isinstance(image, (bytes, bytearray)):
        return _read(caller, bytes(image), f"{len(image)} bytes")
    return _drawn(caller, image)


def _read(caller: str, png: bytes, name: str) -> Picture:
    if png[:8] != _SIGNATURE or png[12:16] != b"IHDR" or len(png) < 33:
        raise checks.error(caller, f"image must be a PNG file, got {name}")
    return Picture(png, *struct.unpack(">II", png[16:24]))


def _drawn(caller: str, image: Any) -> Picture:
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        rule = "image must be a path, the bytes of a PNG file, or an array"
        raise TypeError(f"{caller}: {rule}, got {checks.shown(image):.80}")
    array = mx.array(image)
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if len(shape) != 3 or shape[2] not in _KINDS or 0 in shape:
        rule = "image must have shape [height, width] or [height, width, channels] with 1 to 4 channels"
        raise checks.error(caller, f"{rule}, got {tuple(array.shape)}")
    if mx.issubdtype(array.dtype, mx.floating):
        if not mx.all((array >= 0) & (array <= 1)).item():
            raise checks.error(caller, "image must have values in [0, 1] if its dtype is floating")
        array = mx.round(array * 255).astype(mx.uint8)
    elif array.dtype != mx.uint8:
        raise checks.error(caller, f"image must have dtype uint8 or a floating one, got {array.dtype}")
    height, width, channels = shape
    flat: Any = mx.contiguous(array.reshape(height, -1))
    pixels = bytes(memoryview(flat))
    stride = width * channels
    lines = b"".join(b"\0" + pixels[row * stride : (row + 1) * stride] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, _KINDS[channels], 0, 0, 0)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")
    return Picture(_SIGNATURE + parts, width, height)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
