"""Dtype and shape of each array of a stored tree."""

from collections.abc import Mapping

from purestep._checkpoint.format.header import CorruptError
from purestep._checkpoint.format.kinds import DTYPES as DTYPES
from purestep._checkpoint.format.kinds import nbytes as nbytes
from purestep._core import tree

Leaves = Mapping[str, tree.ArraySpec]


def leaf_specs(caller: str, source: str, spec: tree.Spec | None) -> Leaves:
    """Return the spec of every array of a tree that was read from a header, by path.

    Raises:
        CorruptError: if the header has no tree.
    """
    if spec is None:
        raise CorruptError(f"{caller}: {source} is damaged: it does not describe a tree of arrays")
    return dict(tree.spec_items(spec))
