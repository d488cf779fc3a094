"""The console on which a demo shows what it does."""

from typing import Any

from rich.console import Console
from rich.text import Text

from purestep.escaping import printable_lines


class EscapingConsole(Console):
    """A console of rich's that takes every string for plain text and escapes what a terminal would obey.

    Paths, settings of an earlier run and text that a model writes are shown, and none of them is markup.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text to show, without markup and emoji codes."""
        plain: dict[str, Any] = {"markup": False, "emoji": False}
        return super().render_str(printable_lines(text), **(options | plain))
