"""Tables: as wide as the terminal, or in a pipe as wide as their text."""

import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from purestep._core.escaping import printable

_ALIGNED = 120  # in a pipe, wider cells are not aligned, so that one long name does not pad every row
_READABLE = 24  # the least width of a name in a table


def say(*lines: str) -> None:
    """Print each line, escaped. Only a terminal wraps it, between words."""
    console = _console()
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=not console.is_terminal)


def table(
    title: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    *,
    footer: Sequence[str] | None = None,
) -> None:
    """Print a table and an empty line. Cells are escaped and never read as markup.

    Args:
        title: a line above the table.
        columns: the head and the alignment, `left` or `right`, of each column.
        rows: the cells of each row.
        footer: a last row, separated from the others.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    # A column without a head holds remarks. It is left out if all its cells are empty.
    kept = [number for number, (head, _) in enumerate(columns) if head or any(row[number] for row in rows)]
    heads = [columns[number][0] for number in kept]
    right = [columns[number][1] == "right" for number in kept]
    cells = [[row[number] for number in kept] for row in rows]
    foot = None if footer is None else [footer[number] for number in kept]
    console = _console()
    say(title)
    if console.is_terminal and not (right[0] or _roomy([heads, *cells], console.width)):
        lines = _stacked([heads, *cells, *([] if foot is None else [foot])], right)
    elif console.is_terminal:
        console.print(_drawn(heads, right, cells, foot))
        lines = []
    else:
        lines = _lines([heads, *cells, *([] if foot is None else [foot])], right)
    for line in lines:
        console.print(Text(line), soft_wrap=not console.is_terminal)
    console.print()


def _roomy(rows: Sequence[Sequence[str]], width: int) -> bool:
    """Tell whether a drawn table leaves enough room for the names in the first column."""
    names, *others = (max(map(cell_len, column)) for column in zip(*rows, strict=True))
    return width - sum(others) - 3 * len(others) - 4 >= min(names, _READABLE)


def _stacked(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterable[str]:
    """Return the lines of a table for a narrow terminal: each name, and its other cells below it."""
    below = _lines([row[1:] for row in rows], right[1:])
    for row, line in zip(rows, below, strict=True):
        yield row[0]
        if line:
            yield f"    {line}"


def _drawn(
    heads: Sequence[str], right: Sequence[bool], cells: Iterable[Sequence[str]], footer: Sequence[str] | None
) -> Table:
    drawn = Table(show_footer=footer is not None)
    for number, head in enumerate(heads):
        drawn.add_column(
            Text(head),
            footer=Text("" if footer is None else footer[number]),
            justify="right" if right[number] else "left",
            overflow="fold",
            # Names may wrap, numbers may not.
            no_wrap=right[number],
        )
    for row in cells:
        drawn.add_row(*map(Text, row))
    return drawn


def _lines(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterable[str]:
    widths = [min(max(map(cell_len, column)), _ALIGNED) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = []
        for cell, width, to_the_right in zip(row, widths, right, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if to_the_right else cell + space)
        yield "  ".join(padded).rstrip()


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
