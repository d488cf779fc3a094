"""Parameters as few vectors."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing import Packed, class_for, holds_packed
from purestep._core.types import Params, Tree
from purestep._transforms.core.base import check_floating
from purestep._transforms.core.masks import called_with, spread

Groups: TypeAlias = Tree | Callable[[Params], Tree] | Callable[[str, mx.array], Any]
"""A mask in any form that `masked` accepts, or the same with strings in place of booleans."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_CALLER = "packed"


def packed(params: Params, groups: Groups | None = None, *, largest: int = 2**27) -> Packed:
    """Return parameters as few vectors, so that clipping and optimizers run a few kernels, not one each.

    Train on the result as on the parameters: `ps.TrainState.create(ps.packed(params), transform)`. Gradients,
    moments and averages are vectors too. A loss function receives the model's own tree, whose arrays are
    views of the vectors. Checkpoints hold the model's own tree: a packed state can be saved and restored
    without packing, and the other way round. `ps.unpacked` gives the tree back.

    Transforms that treat all elements alike compute on the vectors. The others, such as Muon and LARS,
    receive the model's own trees, and their updates are packed again.

    There is a vector for each group and dtype, or more where one would be too large. A mask of a transform
    must have one value for each vector. By default the groups are `matrices`, the arrays of two or more axes,
    and `rest`: the usual mask of weight decay.

    The memory of an old vector is free once the new one is computed. So the update of a state of many vectors
    needs little memory beyond the state, if no one else holds the old state.

    Args:
        params: a tree of floating-point arrays. They are copied into the vectors.
        groups: a mask in any form that `transforms.masked` accepts, whose groups are `selected` and `others`;
            or the same with names in place of booleans, such as a function `(path, leaf) -> str`. A name is
            letters, digits and underscores.
        largest: the most elements of a vector, at least 1. An array that is larger has a vector of its own.

    Returns:
        A NamedTuple with a vector for each field, such as `matrices_float32` and `rest_float32`; further ones
        of a group end in `_2`, `_3` and so on. Equal layouts have the same class.

    Raises:
        TypeError: for a leaf that is not an array, or a group that is neither a string nor a boolean, with
            the path.
        ValueError: for parameters that hold no arrays, are not floating-point or are packed already, and for
            `largest` below 1.

    >>> import purestep as ps
    >>> params = ps.packed({"w": mx.ones((2, 3)), "b": mx.zeros(3)})
    >>> params._fields, params.matrices_float32.shape
    (('matrices_float32', 'rest_float32'), (6,))
    >>> loss_fn = lambda params, batch, rng: mx.square(batch["x"] @ params["w"] + params["b"]).mean()
    >>> transform = ps.optimizers.adamw(1e-2, mask=ps.transforms.matrices)
    >>> state = ps.TrainState.create(params, transform)
    >>> state, _ = ps.train_step(loss_fn, transform)(state, {"x": mx.ones((4, 2))})
    >>> ps.unpacked(state.params)["w"].shape
    (2, 3)
    """
    largest = checks.integer(_CALLER, "largest", largest, least=1)
    if holds_packed(params):
        raise checks.error(_CALLER, "params must be the model's own tree, got one that is packed already")
    found = tree.items(params)
    for path, leaf in found:
        if not isinstance(leaf, mx.array):
            raise TypeError(f"{_CALLER}: params must hold arrays, got {type(leaf).__name__} at {path}")
    if not found:
        raise checks.error(_CALLER, "params must hold at least one array, got none")
    check_floating(_CALLER, params)
    values = _default if groups is None else groups
    values = called_with(values, params) if callable(values) else values
    chosen = spread(_CALLER, "groups", values, params, _check)
    names = [
        f"{_name(group)}_{tree.dtype_name(leaf.dtype)}"
        for group, (_, leaf) in zip(tree.leaves(chosen), found, strict=True)
    ]
    kind = class_for(params, _numbered(names, [leaf.size for _, leaf in found], largest))
    return kind(*kind.layout.pack(params))


def _numbered(names: list[str], sizes: list[int], largest: int) -> list[str]:
    """Return the names of vectors with a number where those of one name would be too large together.

    >>> _numbered(["a", "a", "b", "a"], [2, 3, 9, 2], 5)
    ['a', 'a', 'b', 'a_2']
    """
    filled: dict[str, tuple[int, int]] = {}  # the number of the last vector and its elements
    found = []
    for name, size in zip(names, sizes, strict=True):
        number, before = filled.get(name, (1, 0))
        if before and before + size > largest:
            number, before = number + 1, 0
        filled[name] = number, before + size
        found.append(name if number == 1 else f"{name}_{number}")
    return found


def _default(path: str, leaf: mx.array) -> str:
    return "matrices" if leaf.ndim >= 2 else "rest"


def _check(path: str, group: Any) -> None:
    if not isinstance(group, (str, bool)):
        raise TypeError(f"{_CALLER}: groups must hold names or booleans, got {group!r} at {path}")
    if isinstance(group, str) and not _NAME.fullmatch(group):
        raise checks.error(
            _CALLER, f"groups must hold names of letters, digits and _, got {group!r} at {path}"
        )


def _name(group: str | bool) -> str:
    return group if isinstance(group, str) else "selected" if group else "others"
