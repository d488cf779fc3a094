"""The training text: a file of the user, or CPython's language reference."""

import codecs
import os
import stat
from collections.abc import Callable
from pydoc_data.topics import topics

SHORTEST = 2000  # characters; the validation split, a tenth of them, then fills a few windows
LARGEST = 8_000_000  # bytes read; they take at most 200 MB of memory and a minute to count trigrams
MOST_SYMBOLS = 20_000  # different characters; the logits of an evaluation then take 0.3 GB


def read_text(data: str | None, note: Callable[[str], object] = lambda text: None) -> str:
    """Return the training text, at most its first `LARGEST` bytes.

    Args:
        data: the path of a UTF-8 file; `None` for CPython's language reference.
        note: called with a sentence if the file is longer.

    Raises:
        ValueError: if the file is not a regular file, is not UTF-8, is too short, or has too many different
            characters.
        OSError: if the file cannot be read.
    """
    if data is None:
        return "\n".join(topics[name] for name in sorted(topics))
    content, size = _bounded(data)
    cut = len(content) > LARGEST
    if cut:
        content = content[:LARGEST]
        note(f"--data reads the first {LARGEST:,} bytes of {data}, which has {max(size, LARGEST + 1):,}")
    try:
        # The last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=not cut)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"demo: --data must be UTF-8 text, {data} is not, from byte {error.start} on"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) < SHORTEST:
        raise ValueError(f"demo: --data must have at least {SHORTEST} characters, {data} has {len(text)}")
    symbols = len(set(text))
    if symbols > MOST_SYMBOLS:
        raise ValueError(
            f"demo: --data must have at most {MOST_SYMBOLS} different characters, {data} has {symbols}"
        )
    return text


def _bounded(path: str) -> tuple[bytes, int]:
    """Return at most `LARGEST + 1` bytes of a file and its size, without waiting for a writer of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
            raise ValueError(f"demo: --data must be a file, {path} is a {kind}")
        parts, wanted = [], LARGEST + 1
        while wanted and (part := os.read(descriptor, wanted)):
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts), status.st_size
    finally:
        os.close(descriptor)
