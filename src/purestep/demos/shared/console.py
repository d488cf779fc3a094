"""The console on which a demo shows what it does."""

from typing import Any

from rich.console import Console
from rich.text import Text

from purestep._core.escaping import printable_lines

_UNFOLDED = 100_000  # columns


class EscapingConsole(Console):
    """A console of rich's that takes every string for plain text and escapes what a terminal would obey.

    Paths, settings of an earlier run and text that a model writes are shown, and none of them is markup.
    Lines are folded at the width of a terminal, and in a pipe not at all.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        if not self.is_terminal and "width" not in options:
            self.width = _UNFOLDED

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to show, without markup and emoji codes."""
        plain: dict[str, Any] = {"markup": False, "emoji": False}
        return super().render_str(printable_lines(text), **(options | plain))
