"""The listing of a public namespace."""

from collections.abc import Callable, Sequence


def listing(names: Sequence[str]) -> Callable[[], list[str]]:
    """Return the `__dir__` of a module that shows only its public names, sorted.

    >>> listing(["b", "a"])()
    ['a', 'b']
    """
    return lambda: sorted(names)
