"""Tokens as bytes: dtypes, buffers and the header of `.npy` files."""

import ast
from array import array as numbers
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from purestep._core import checks

DTYPES: dict[str, mx.Dtype] = {
    "uint8": mx.uint8,
    "uint16": mx.uint16,
    "uint32": mx.uint32,
    "int32": mx.int32,
    "int64": mx.int64,
}
_CODES = {"uint8": "B", "uint16": "H", "uint32": "I", "int32": "i", "int64": "q"}
_NAMES = {
    **{(code, size): f"uint{8 * size}" for code in "BHILQ" for size in (1, 2, 4)},
    **{(code, size): f"int{8 * size}" for code in "ilq" for size in (4, 8)},
}


def array(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> mx.array:
    """Return an array in host memory with a copy of the bytes.

    >>> array(bytes([1, 0, 2, 0]), "uint16", (1, 2))
    array([[1, 2]], dtype=uint16)
    """
    if not len(data):
        return mx.zeros(shape, DTYPES[dtype])
    return mx.array(memoryview(data).cast("B").cast(_CODES[dtype], shape))  # pyright: ignore[reportCallIssue, reportArgumentType]


def packed(caller: str, tokens: Iterable[int] | mx.array, dtype: str, position: int) -> Any:
    """Return tokens as an `array.array` of a dtype; refuse those that do not fit.

    Args:
        caller: as in `checks.error`.
        tokens: integers, or an integer array [tokens].
        dtype: a name in `DTYPES`.
        position: that of the first token, for the error.

    >>> packed("caller", [1, 70_000], "uint16", 100)
    Traceback (most recent call last):
    ValueError: caller: tokens must fit uint16, got 70000 at position 101
    """
    listed: Any = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return numbers(_CODES[dtype], listed)
    except (OverflowError, TypeError):
        offset, token = next(each for each in enumerate(listed) if not _fits(each[1], dtype))
        raise checks.error(
            caller, f"tokens must fit {dtype}, got {checks.shown(token)} at position {position + offset}"
        ) from None


def _fits(token: Any, dtype: str) -> bool:
    try:
        return bool(numbers(_CODES[dtype], [token]))
    except (OverflowError, TypeError):
        return False


def buffer(caller: str, tokens: Any) -> tuple[memoryview, str]:
    """Return the bytes of an integer array [length] in memory, without a copy, and its dtype."""
    whole: Any = tokens
    if isinstance(tokens, mx.array):
        mx.eval(tokens)
    try:
        view = memoryview(whole)
        dtype = _NAMES.get((view.format, view.itemsize))
    except (TypeError, ValueError):
        view, dtype = memoryview(b""), None
    if dtype is None or dtype not in DTYPES or view.ndim != 1 or not view.c_contiguous:
        kind = f"{tokens.dtype} {tuple(tokens.shape)}" if hasattr(tokens, "dtype") else type(tokens).__name__
        raise checks.error(
            caller, f"tokens must be a contiguous array [length] of {', '.join(DTYPES)}, got {kind}"
        )
    return view.cast("B"), dtype


def npy(start: bytes) -> tuple[str, tuple[int, ...], int] | None:
    """Return dtype, shape and offset of the data from the first bytes of a `.npy` file; `None` for others.

    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    if start[:6] != b"\x93NUMPY" or len(start) < 12:
        return None
    width = 2 if start[6] == 1 else 4
    end = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    try:
        header = ast.literal_eval(start[8 + width : end].decode("latin1"))
        shape, kind = tuple(header["shape"]), str(header["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError):
        return "unknown", (), end
    names = {"<u2": "uint16", "<u4": "uint32", "|u1": "uint8", "<i4": "int32", "<i8": "int64"}
    return names.get(kind, kind), shape, end
