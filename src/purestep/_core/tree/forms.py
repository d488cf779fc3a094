"""Forms: how a tree of arrays is built, for recognizing trees that are built alike."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core.types import Tree

_array = mx.array


class Form(NamedTuple):
    """How a tree of arrays is built, without their memory.

    Attributes:
        kind: the type of the node.
        length: the number of children.
        leaves: the keys or positions of the children that are arrays, with their shapes and dtypes.
        others: the keys or positions of the other children, with their forms.
    """

    kind: type
    length: int
    leaves: list[tuple[Any, tuple[int, ...], mx.Dtype]]
    others: "list[tuple[Any, Form]]"


def form(tree: Tree) -> Form:
    """Return how a tree of arrays is built.

    >>> fits(form({"w": mx.zeros(2)}), {"w": mx.ones(2)}), fits(form({"w": mx.zeros(2)}), {"w": mx.ones(3)})
    (True, False)
    """
    if isinstance(tree, _array):  # one of a subclass is not recognized again, as `fits` is for exact types
        return Form(_array, 0, [(None, tree.shape, tree.dtype)], [])
    children: list[tuple[Any, Any]] = list(
        tree.items() if type(tree) is dict else enumerate(() if tree is None else tree)
    )
    leaves = [(key, child.shape, child.dtype) for key, child in children if type(child) is _array]
    others = [(key, form(child)) for key, child in children if type(child) is not _array]
    return Form(type(tree), len(children), leaves, others)


def fits(form: Form, tree: Any) -> bool:
    """Tell whether a tree has the containers, keys, shapes and dtypes of a form, in any order of the keys."""
    kind, length, leaves, others = form
    if type(tree) is not kind:
        return False
    if kind is _array:
        return tree.shape == leaves[0][1] and tree.dtype == leaves[0][2]
    if tree is None:
        return True
    if len(tree) != length:
        return False
    try:
        for key, shape, dtype in leaves:
            leaf = tree[key]
            if type(leaf) is not _array or leaf.shape != shape or leaf.dtype != dtype:
                return False
        for key, below in others:
            if not fits(below, tree[key]):
                return False
    except KeyError:
        return False
    return True


def gathered(form: Form, tree: Any) -> list[Any]:
    """Return the leaves of a tree with the containers and keys of a form.

    Their order is that of the form, not that of the keys in the tree.

    >>> gathered(form({"a": mx.zeros(2), "b": mx.zeros(2)}), {"b": 2, "a": 1})
    [1, 2]
    """
    if form.kind is _array:
        return [tree]
    found = [tree[key] for key, _, _ in form.leaves]
    for key, below in form.others:
        found += gathered(below, tree[key])
    return found
