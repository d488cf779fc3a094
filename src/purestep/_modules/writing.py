"""Writing trained arrays back into a module."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from purestep._core import tree
from purestep._core.packing import unpacked
from purestep._core.types import Params, Tree
from purestep._modules.slots import check_fits, paths_chosen, slots_of, trained_and_held


def write_back(
    module: nn.Module,
    params: Params,
    model_state: Tree | None = None,
    *,
    trainable: str | Sequence[str] | None = None,
) -> None:
    """Write the arrays of `functional` back into a module. Tied arrays stay tied.

    `module.update(params)` writes a tied array only to its first place. This function writes it to all.

    Args:
        module: the module that was bridged, or one with the same structure; it is changed.
        params: arrays with the paths and shapes of `functional(module)[1]`.
        model_state: arrays with the paths and shapes of `functional(module)[2]`. If it is omitted or empty,
            the module keeps its own.
        trainable: the patterns that `functional` was called with.

    Raises:
        ValueError: if a tree does not fit the module, with the path, before anything is written.
        TypeError: if `module` is not a module.

    >>> import mlx.core as mx
    >>> module = nn.Linear(2, 1)
    >>> write_back(module, {"weight": mx.ones((1, 2)), "bias": mx.zeros(1)})
    >>> module(mx.ones(2))
    array([2], dtype=float32)
    """
    caller = "write_back"
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be an mlx.nn.Module, got {type(module).__name__}")
    params = unpacked(params)
    slots = slots_of(module)
    paths = None if trainable is None else paths_chosen(caller, module, slots, trainable)
    trained, held = trained_and_held(module, slots, paths)
    written: list[tuple[str, Any]] = []
    for name, given, want in (("params", params, trained), ("model_state", model_state, held)):
        if name == "model_state" and not tree.leaves(given):
            continue
        shapes = {path: leaf.shape for path, leaf in tree.items(want)}
        check_fits(caller, name, given, shapes, shapes=True)
        written += tree.items(given)
    for path, array in written:
        handle = copy.copy(array)
        for slot in slots[path]:
            slot.write(handle)
