"""Standard output and standard error of a command, escaped and encodable."""

import errno
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from purestep._core.escaping import encodable, printable_lines

# The sequences that rich sends to a terminal: colours, and the movements that redraw a progress bar.
_OURS = re.compile(r"(\x1b\[[0-9;]*m|\x1b\[\d*[AK]|\x1b\[\?25[hl]|\r)")
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")  # what Python sets LC_CTYPE to when the locale is C


class OutputError(BaseException):
    """Standard output cannot be written. A `BaseException`, so that `except Exception` does not catch it."""

    def __init__(self, error: OSError):
        super().__init__(error.strerror or str(error))
        self.closed = isinstance(error, BrokenPipeError)


class Stream:
    """A text stream in place of `sys.stdout` or `sys.stderr`.

    Each line is escaped by `printable`; on a terminal, colours and the movements of a progress bar pass
    unchanged. Characters that the encoding lacks are replaced by ASCII. A tab becomes spaces.

    Args:
        under: the stream to write to; `None` if the process has none.
        needed: raise `OutputError` if the stream cannot be written; otherwise the text is dropped.
    """

    def __init__(self, under: TextIO | None, *, needed: bool):
        self._under, self._needed = under, needed
        self._terminal = under is not None and under.isatty()
        self._dropping = under is None
        self._error: OSError | None = None
        encoding = getattr(under, "encoding", None) or "utf-8"
        self.encoding = "ascii" if plain_locale(os.environ) else encoding

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream below."""
        if self._under is None:
            raise AttributeError(name)
        return getattr(self._under, name)

    def isatty(self) -> bool:
        """Tell whether this is a terminal."""
        return self._terminal

    def write(self, text: str) -> int:
        """Write text, escaped."""
        if self._under is not None:
            self._try(self._under.write, self._safe(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream below."""
        if self._under is not None:
            self._try(self._under.flush)

    def _safe(self, text: str) -> str:
        parts = _OURS.split(text) if self._terminal else [text]
        safe = [part if number % 2 else printable_lines(part) for number, part in enumerate(parts)]
        return encodable("".join(safe), self.encoding)

    def _try(self, action: Any, *arguments: str) -> None:
        if not self._dropping:
            try:
                action(*arguments)
            except OSError as error:
                self._give_up(error)
            except ValueError as error:  # the stream below was closed
                self._give_up(OSError(errno.EBADF, str(error)))
        # Only the main thread raises: in the thread that redraws a bar, Python would print a traceback.
        main = threading.current_thread() is threading.main_thread()
        if self._error is not None and self._needed and main:
            error, self._error = self._error, None
            raise OutputError(error)

    def _give_up(self, error: OSError) -> None:
        self._dropping, self._error = True, error
        if self._under in (sys.__stdout__, sys.__stderr__):
            # The interpreter flushes the stream again when it exits, and would report the error again.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._under.fileno())  # type: ignore[union-attr]
            os.close(nothing)


def plain_locale(environment: Mapping[str, str]) -> bool:
    """Tell whether the user chose the locale C or POSIX, which Python itself treats as UTF-8.

    >>> plain_locale({"LANG": "C", "LC_CTYPE": "C.UTF-8"}), plain_locale({"LANG": "en_US.UTF-8"})
    (True, False)
    """
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8"):
        return False
    every, kind = environment.get("LC_ALL"), environment.get("LC_CTYPE")
    if kind in _COERCED:
        kind = None
    return (every or kind or environment.get("LANG")) in ("C", "POSIX")
