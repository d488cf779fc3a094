"""What every stored state says of itself: the format's version and how its tree is built."""

from typing import Any

from purestep import tree
from purestep.types import Tree

FORMAT = 1


def header(state: Tree) -> dict[str, Any]:
    """Describe a tree of arrays in plain values."""
    return {"format": FORMAT, "tree": tree.spec(state)}


def check(where: str, source: str, stored: Any, like: Tree) -> None:
    """Refuse what was not stored by purestep, comes from another format, or does not fit the template.

    Raises:
        ValueError: with every difference on a line of its own, by path.
    """
    if not isinstance(stored, dict) or "format" not in stored or "tree" not in stored:
        raise ValueError(f"{where}: {source} was not written by purestep.checkpoint")
    if stored["format"] != FORMAT:
        raise ValueError(
            f"{where}: {source} has format {stored['format']!r}, this purestep reads {FORMAT}: "
            "use the version of purestep that wrote it"
        )
    try:
        lines = tree.differences(stored["tree"], tree.spec(like), "the file", "like")
    except (LookupError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{where}: {source} is damaged: it does not describe a tree") from None
    if lines:
        raise ValueError(f"{where}: {source} does not fit like:\n  " + "\n  ".join(lines))
