"""Read weights into a copy of a module."""

from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from purestep._checkpoint.files.fitting import Options, plain_name, read_weights
from purestep._checkpoint.files.foreign import Weights
from purestep._core import checks, tree
from purestep._modules.copying import UncopyableError, copied
from purestep._modules.slots import all_slots

Module = TypeVar("Module", bound=nn.Module)


def module_with(caller: str, weights: Weights, like: Module, options: Options) -> Module:
    """Return a copy of a module with the arrays of files; the module is left unchanged.

    Raises:
        ValueError: if the files do not fit the module; if they have different arrays for the places of one;
            if the module cannot be copied.
    """
    groups: dict[int, list[str]] = {}
    held: dict[str, mx.array] = {}
    for path, slot in all_slots("", like):
        held[path] = slot.read()
        groups.setdefault(id(held[path]), []).append(path)
    tied = [group for group in groups.values() if len(group) > 1]
    names = [[plain_name(path) for path in group] for group in tied]
    given = tree.items(read_weights(caller, weights, like.parameters(), options, tied=names))
    read = dict(given)
    for first, *others in tied:
        for other in others:
            if not _same_bits(read[first], read[other]):
                raise checks.error(
                    caller,
                    f"{first} and {other} are one array in like, and differ in {weights.source}: "
                    "leave one of them out with convert",
                )
    # An array that the files lack is copied with the module, so that both have their own.
    replaced = {id(held[path]): array for path, array in reversed(given) if array is not held[path]}
    try:
        return copied(like, replaced)[id(like)]
    except UncopyableError as error:
        path, kind = error.args
        raise checks.error(
            caller,
            f"like must be a module that can be copied, but {path or 'it'} is a {kind}: give "
            "like=ps.functional(model)[1], and write the result with ps.write_back",
        ) from None


def _same_bits(one: mx.array, other: mx.array) -> bool:
    if one is other:
        return True
    first, second = (array.reshape(-1).view(mx.uint8) for array in (one, other))
    return bool(mx.array_equal(first, second).item())
