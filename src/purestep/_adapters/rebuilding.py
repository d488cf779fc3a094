"""Copies of modules in which some layers are replaced."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.nn as nn

from purestep._adapters.low_rank import Adapter
from purestep._core import checks
from purestep._modules.copying import UncopyableError, copied

Module = TypeVar("Module", bound=nn.Module)


def rebuilt(
    caller: str, module: Module, layers: Mapping[str, nn.Module], make: Callable[[str, Any], nn.Module]
) -> Module:
    """Return a copy of a module, which is left unchanged.

    Args:
        caller: the public name that the user called.
        module: the module.
        layers: the layers to replace, by path.
        make: returns the replacement of a layer, from its path and a copy of it. The copy and the rest of the
            module share their tied arrays.
    """
    # Arrays and layers are copied once each: `known` holds what was copied, by the `id` of the original.
    known: dict[int, Any] = {}
    try:
        for layer in layers.values():
            known = copied(layer, known)
        known |= {id(layer): make(path, known[id(layer)]) for path, layer in layers.items()}
        return copied(module, known)[id(module)]
    except UncopyableError as error:
        path, kind = error.args
        raise checks.error(
            caller, f"module must be one that can be copied, but {path or 'it'} is a {kind}"
        ) from None


def freeze_all_but_adapters(module: nn.Module) -> None:
    """Freeze a module except for the arrays of its adapters."""
    module.freeze()
    for part in module.modules():
        if isinstance(part, Adapter):
            part.unfreeze(recurse=False, keys=list(part.trained))
