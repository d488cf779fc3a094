"""Patterns of paths: `*` stands for any text, `?` for one character."""

import re
from collections.abc import Sequence

from purestep._core import checks


def compile_pattern(caller: str, pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a path pattern."""
    if not isinstance(pattern, str):
        raise TypeError(f"{caller}: a pattern must be a string, got {pattern!r}")
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def matched(caller: str, patterns: Sequence[str], paths: Sequence[str]) -> set[str]:
    """Return the paths that match a pattern as a whole.

    Raises:
        ValueError: for a pattern that matches no path, since it is probably misspelt.
    """
    found: set[str] = set()
    for text in patterns:
        pattern = compile_pattern(caller, text)
        these = {path for path in paths if pattern.fullmatch(path)}
        if not these:
            raise checks.error(caller, f"pattern {text!r} matches none of {shown_paths(paths)}")
        found |= these
    return found


def shown_paths(paths: Sequence[str]) -> str:
    """Return up to eight paths as text."""
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    named = ", ".join(path or "the tree" for path in paths[:8])
    return f"the paths {named}{more}" if paths else "no paths: the tree is empty"
