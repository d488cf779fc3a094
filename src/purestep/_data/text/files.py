"""Files of tokens: flat arrays of integers on disk, of any size, read in parts."""

import copy
import json
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.format.header import naming
from purestep._core import checks
from purestep._data.text import layouts
from purestep._data.text.layouts import DTYPES

_FORMAT = "purestep.tokens"
_SIDECAR = ".json"
_PROBE = 2048  # tokens
_LARGEST = 2**20  # no vocabulary has so many tokens


class Description(NamedTuple):
    """What the description beside a token file says.

    Attributes:
        dtype: the name of the tokens' dtype.
        count: the number of tokens.
        tokenizer: the name of the tokenizer, or `None`.
    """

    dtype: str
    count: int
    tokenizer: str | None


class TokenFile:
    """A file of tokens on disk, read in parts, so that it may exceed the memory.

    The parts are read with `os.pread`. Unlike a memory map, this leaves no pages in the process: memory does
    not grow with the part of the file that was visited. An open `TokenFile` may be used by several threads.

    Three kinds of files are accepted:

    - raw tokens with a description beside them, `tokens.bin` and `tokens.bin.json`, as written by
      `TokenFile.write` and `tokenize_file`;
    - raw tokens alone, little-endian, as written by `numpy.ndarray.tofile`: pass `dtype`;
    - `.npy`, as written by `numpy.save`, with one axis.

    `file[start:stop]` is a part of the file, such as the tokens to train on. Nothing is read.

    Attributes:
        path: the file.
        dtype: name of the tokens' dtype.
        tokenizer: name of the tokenizer in the description, or `None`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tokens.bin"
    >>> file = TokenFile.write(path, [[5, 6, 7], [8]], dtype="uint16")
    >>> len(file), file.read(1, 3), file[-2:].read(0, 2)
    (4, array([6, 7], dtype=uint16), array([7, 8], dtype=uint16))
    """

    _whole: "TokenFile | None" = None  # of a part: keeps the file open

    def __init__(self, path: str | os.PathLike[str], dtype: str | None = None, *, header: int = 0):
        """Open a file.

        Args:
            path: the file.
            dtype: "uint8", "uint16", "uint32", "int32" or "int64". `None`: as described beside the file or
                in its header.
            header: bytes before the first token of a raw file, at least 0.

        Raises:
            ValueError: if the dtype is unknown or differs from the description, or the size of the file
                does not fit the dtype or the description, as after an interrupted copy; or if the first
                tokens of a file without a description seem to have another dtype.
            OSError: if the file cannot be opened.
        """
        caller = "TokenFile"
        self.path = Path(path)
        if dtype is not None:
            checks.one_of(caller, "dtype", dtype, DTYPES)
        header = checks.integer(caller, "header", header, least=0)
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        described = _npy(caller, self.path, self._descriptor, header) or _beside(caller, self.path, header)
        if described is None and dtype is None:
            raise checks.error(
                caller, f"dtype must be given for a file without a description, {self.path} has none"
            )
        self.dtype: str = dtype or (described[0].dtype if described else "")
        self.tokenizer: str | None = described[0].tokenizer if described else None
        if described and dtype not in (None, described[0].dtype):
            raise checks.error(
                caller, f"dtype must be {described[0].dtype!r}, as {self.path} is described, got {dtype!r}"
            )
        self._start = described[1] if described else header
        self._width = DTYPES[self.dtype].size
        body = size - self._start
        if body < 0 or body % self._width:
            raise checks.error(
                caller,
                f"{self.path} must hold whole {self.dtype} tokens after {self._start} bytes of header, got "
                f"{size} bytes: the file is truncated or has another dtype",
            )
        self._count = body // self._width
        if described and described[0].count != self._count:
            raise checks.error(
                caller,
                f"{self.path} must hold {described[0].count} tokens, as it is described, got {self._count}: "
                "the file is truncated or was replaced",
            )
        if not described:
            self._refuse_other_widths(caller)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._count

    def __getitem__(self, part: slice) -> "TokenFile":
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(
                f"TokenFile: a part must be file[start:stop], got {part!r}; `read` returns tokens"
            )
        start, stop, _ = part.indices(self._count)
        found = copy.copy(self)
        found._whole, found._count = self, max(stop - start, 0)
        found._start += start * self._width
        return found

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r}, {self.dtype!r}, {self._count} tokens)"

    def read(self, start: int, stop: int) -> mx.array:
        """Return the tokens from `start` to `stop`, in the file's dtype, [stop - start].

        Raises:
            ValueError: unless `0 <= start <= stop <= len(self)`.
        """
        caller = "TokenFile.read"
        start = checks.integer(caller, "start", start, least=0)
        stop = checks.integer(caller, "stop", stop, least=start)
        if stop > self._count:
            raise checks.error(caller, f"stop must be at most {self._count} tokens, got {stop}")
        return layouts.array(self._bytes(start, stop), self.dtype, (stop - start,))

    def windows(self, starts: Sequence[int], length: int) -> mx.array:
        """Return the windows of `length` tokens from each of `starts`, in the file's dtype, [starts, length].

        Raises:
            ValueError: if a window lies outside the file.
        """
        caller = "TokenFile.windows"
        length = checks.integer(caller, "length", length, least=1)
        starts = [checks.integer(caller, "starts", start) for start in starts]
        for start in starts:
            if not 0 <= start <= self._count - length:
                raise checks.error(
                    caller,
                    f"starts must be in [0, {self._count - length}] for length={length}, got {start}",
                )
        data = b"".join([self._bytes(start, start + length) for start in starts])
        return layouts.array(data, self.dtype, (len(starts), length))

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        pieces: Iterable[Iterable[int] | mx.array],
        *,
        dtype: str,
        tokenizer: str | None = None,
    ) -> "TokenFile":
        """Write tokens to a file, one piece after the other, and a description beside it; return it open.

        The file is complete or absent, also after a crash. Memory is bounded by the largest piece.

        Args:
            path: the file; an existing one is replaced.
            pieces: parts of the sequence of tokens, in order: integers, or integer arrays [tokens].
            dtype: "uint8", "uint16", "uint32", "int32" or "int64".
            tokenizer: name of the tokenizer, for the description.

        Raises:
            ValueError: if a token does not fit the dtype, or there are none.
            OSError: if the file cannot be written.
        """
        caller = "TokenFile.write"
        checks.one_of(caller, "dtype", dtype, DTYPES)
        path = Path(path)
        counts = [0]

        def fill(temporary: Path) -> None:
            with naming(temporary), temporary.open("wb") as file:
                for piece in pieces:
                    data = layouts.packed(caller, piece, dtype, counts[0])
                    counts[0] += len(data)
                    file.write(data)
            if not counts[0]:
                raise checks.error(caller, f"pieces must hold at least one token, got none for {path}")
            # A description of other tokens must not stand beside the new file.
            Path(f"{path}{_SIDECAR}").unlink(missing_ok=True)

        atomic.write(path, fill)
        description = {"format": _FORMAT, "dtype": dtype, "count": counts[0], "tokenizer": tokenizer}
        atomic.write_text(Path(f"{path}{_SIDECAR}"), json.dumps(description) + "\n")
        return cls(path)

    def pieces(self, size: int = 1 << 20) -> Iterator[mx.array]:
        """Yield all tokens in order, in arrays of at most `size` tokens."""
        size = checks.integer("TokenFile.pieces", "size", size, least=1)
        for start in range(0, self._count, size):
            yield self.read(start, min(start + size, self._count))

    def _bytes(self, start: int, stop: int) -> bytes:
        wanted = (stop - start) * self._width
        data = os.pread(self._descriptor, wanted, self._start + start * self._width)
        while len(data) < wanted:  # one call reads at most 2 GB, and signals may interrupt it
            more = os.pread(
                self._descriptor, wanted - len(data), self._start + start * self._width + len(data)
            )
            if not more:
                raise checks.error(
                    "TokenFile",
                    f"{self.path} must keep its {self._count} tokens while open, it was truncated",
                )
            data += more
        return data

    def _refuse_other_widths(self, caller: str) -> None:
        """Refuse tokens that seem to be halves of wider ones, or several narrower ones."""
        if self._count < 64:
            return
        first: Any = self.read(0, min(self._count, _PROBE) // 2 * 2).tolist()
        if sum(not 0 <= token < _LARGEST for token in first) > len(first) // 2:
            raise checks.error(
                caller,
                f"dtype must be the one of {self.path}, got {self.dtype!r}, with which most tokens are above "
                f"{_LARGEST}: the file seems to hold narrower tokens. If it does not, write it with "
                "TokenFile.write, which describes it",
            )
        if self._width < 8 and not any(first[1::2]) and len(set(first[::2])) > 1:
            wider = f"uint{16 * self._width}" if self._width < 4 else "int64"
            raise checks.error(
                caller,
                f"dtype must be the one of {self.path}, got {self.dtype!r}, with which every second token "
                f"is 0: the file seems to hold {wider} tokens",
            )


def _beside(caller: str, path: Path, header: int) -> tuple[Description, int] | None:
    """Return the description beside a file and the number of bytes before its tokens."""
    place = Path(f"{path}{_SIDECAR}")
    try:
        text = place.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
        if values["format"] != _FORMAT:
            return None  # another program's
        found = Description(values["dtype"], values["count"], values.get("tokenizer"))
        if found.dtype not in DTYPES or type(found.count) is not int:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise checks.error(
            caller, f"{place} must be a description written by TokenFile.write, got {text[:60]!r}"
        ) from None
    return found, header


def _npy(caller: str, path: Path, descriptor: int, header: int) -> tuple[Description, int] | None:
    """Return the description in the header of a `.npy` file, and the size of the header."""
    found = layouts.npy(os.pread(descriptor, 1 << 16, 0))
    if found is None:
        return None
    dtype, shape, start = found
    if header:
        raise checks.error(caller, f"header must be 0 for {path}, a file of numpy, got {header}")
    if dtype not in DTYPES or len(shape) != 1:
        raise checks.error(
            caller,
            f"{path} must hold little-endian tokens [length] of dtype {', '.join(DTYPES)}, got "
            f"{dtype} {shape}",
        )
    return Description(dtype, shape[0], None), start


if sys.byteorder != "little":  # pragma: no cover: MLX itself runs on little-endian machines only
    raise ImportError("purestep.data reads little-endian tokens only")
