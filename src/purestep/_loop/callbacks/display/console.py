"""A console that shows untrusted text as it is."""

from typing import Any

from rich.console import Console
from rich.text import Text

from purestep._core.escaping import printable_lines

_UNFOLDED = 100_000  # columns of a pipe, so that lines are not wrapped


class EscapingConsole(Console):
    """A rich console that treats every string as plain text and escapes control characters.

    It shows paths, settings of earlier runs and text that a model wrote, so markup is not interpreted. Lines
    are wrapped at the width of a terminal; in a pipe they are not wrapped.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        if not self.is_terminal and "width" not in options:
            self.width = _UNFOLDED

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text without interpreting markup or emoji codes."""
        plain: dict[str, Any] = {"markup": False, "emoji": False}
        return super().render_str(printable_lines(text), **(options | plain))
