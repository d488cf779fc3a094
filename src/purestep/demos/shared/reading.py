"""The text to learn: a file of the user's, or one that comes with Python."""

import codecs
import os
import stat
from collections.abc import Callable
from pydoc_data.topics import topics

SHORTEST = 2000  # characters: a tenth of it, the validation split, then fills a few windows
LARGEST = 8_000_000  # bytes read; some 200 MB of memory at most, and a minute to count its trigrams
MOST_SYMBOLS = 20_000  # different characters: the logits of an evaluation then take 0.3 GB


def read_text(data: str | None, note: Callable[[str], object] = lambda text: None) -> str:
    """Return the text to learn, at most its first `LARGEST` bytes.

    Args:
        data: the path of a UTF-8 file; `None` for CPython's language reference.
        note: called with a sentence if the file has more.

    Raises:
        ValueError: if it is no regular file, is not UTF-8, is short, or has too many different characters.
        OSError: if it cannot be read.
    """
    if data is None:
        return "\n".join(topics[name] for name in sorted(topics))
    content, size = _bounded(data)
    cut = len(content) > LARGEST
    if cut:
        content = content[:LARGEST]
        note(f"--data reads the first {LARGEST:,} bytes of {data}, which has {max(size, LARGEST + 1):,}")
    try:
        # A character at the cut may be incomplete.
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
    """Return at most `LARGEST + 1` bytes of a file, and the size it has; never wait for a writer."""
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
