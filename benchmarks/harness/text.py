"""Tables and lines for people: results on standard output, progress on standard error."""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def facts_lines(known: Mapping[str, Any]) -> str:
    """Write the facts in lines of at most 100 columns."""
    return textwrap.fill(", ".join(f"{name} {value}" for name, value in known.items()), 100)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [head, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def note(text: str, *, passing: bool = False) -> None:
    """Say on standard error what goes on; a passing note only to a terminal, and overwritten."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """Read a command-line count of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seconds(text: str) -> float:
    """Read a command-line time of at least 0 seconds."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0 seconds, got {text}")
    return value


def names(text: str) -> list[str]:
    """Read names of contestants, separated by semicolons."""
    return [name.strip() for name in text.split(";") if name.strip()]
