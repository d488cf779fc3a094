"""Text with control sequences, and a check that the output of a command has none."""

import io

from purestep._core.escaping import printable

NAMES = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m\x80\x9d",
    "new\nline\r\tand\x08\x7f",
    "\u202eright\u2066to\u2069left\u200f\u061c",
    "zero\u200bwidth\u2028\u2029\ufeff",
    "surrogate\udcff",
    "[red]markup[/red] :smile:",
)


class Terminal(io.StringIO):
    """A terminal that records its input."""

    def isatty(self):
        return True


def check(text):
    """Fail if text contains anything but printable characters and newlines."""
    wrong = {character for character in text if character != "\n" and printable(character) != character}
    assert not wrong, (sorted(map(hex, map(ord, wrong))), text)
    assert "Traceback" not in text
    assert "bug in purestep" not in text
