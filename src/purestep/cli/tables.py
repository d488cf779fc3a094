"""What the commands print for people: tables no wider than 100 columns. Needs rich."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100


def say(*lines: str) -> None:
    """Print lines of plain text, folded at the width."""
    console = _console()
    for line in lines:
        console.print(Text(line))


def table(
    title: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    *,
    footer: Sequence[str] | None = None,
) -> None:
    """Print a table.

    Args:
        title: what stands above it.
        columns: the head of each column, and `left` or `right`.
        rows: plain text; what a file says of itself is never taken for markup.
        footer: a last row, set apart.
    """
    drawn = Table(title=Text(title), title_justify="left", show_footer=footer is not None)
    for number, (head, side) in enumerate(columns):
        right = side == "right"
        drawn.add_column(
            head,
            footer=Text("" if footer is None else footer[number]),
            justify="right" if right else "left",
            overflow="fold",
            # Numbers stay whole; names give way.
            no_wrap=right,
        )
    for row in rows:
        drawn.add_row(*map(Text, row))
    _console().print(drawn)


def _console() -> Console:
    screen = sys.stdout.isatty()
    width = min(Console(file=sys.stdout).width, WIDTH) if screen else WIDTH  # in a pipe there is room
    return Console(file=sys.stdout, highlight=False, width=width)
