"""Standard output of a run of `train`, whose loss does not end the training. It needs rich."""

import sys
from typing import Any

from purestep._loop.callbacks.display.bars import BarConsole
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep.cli.core.streams import OutputError
from purestep.demos.shared import running

table = running.table


def say(text: str) -> None:
    """Print text; a terminal wraps it between words."""
    running.say(EscapingConsole(highlight=False), text)


class Screen:
    """A file for the live line. A write that fails is an `OSError`, which a callback only warns of.

    Attributes:
        error: the first failure of standard output, to be raised after the training.
        console: a console on this file.
    """

    def __init__(self) -> None:
        self.error: OutputError | None = None
        self.console = BarConsole(file=self, highlight=False)  # type: ignore[arg-type]

    def write(self, text: str) -> int:
        """Write text to standard output."""
        try:
            return sys.stdout.write(text)
        except OutputError as error:
            self.error = self.error or error
            raise OSError(str(error)) from None

    def flush(self) -> None:
        """Flush standard output."""
        try:
            sys.stdout.flush()
        except OutputError as error:
            self.error = self.error or error
            raise OSError(str(error)) from None

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of standard output."""
        return getattr(sys.stdout, name)
