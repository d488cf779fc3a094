"""Modules without adapters: the updates merged into the weights, or dropped."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import is_quantized, write_weight
from purestep._adapters.low_rank import Adapter
from purestep._adapters.rebuilding import Module, rebuilt
from purestep._adapters.selecting import adapters_of
from purestep._core import checks


def merge(module: Module) -> Module:
    """Return a copy of a module in which each adapter is merged into the weight of its layer.

    The copy has the plain layers that the adapters were added to, so it is saved and run like the original.
    Its outputs equal those of the adapted module to rounding. A quantized weight is quantized again with the
    same group size, bits and mode, which is the error of a quantization. Call `write_back` first to merge
    trained parameters.

    Args:
        module: a module with adapters; it is left unchanged. `remove` gives back its base.

    Returns:
        A new module. Its floating-point arrays are trainable, its quantized weights are frozen.

    Raises:
        ValueError: if the module has no adapters, or cannot be copied.
        TypeError: if `module` is not a module.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> merge(adapters.lora(model, "*", rank=2, alpha=4, key=mx.random.key(0)))
    Sequential(
      (layers.0): Linear(input_dims=8, output_dims=4, bias=True)
    )
    """
    return _plain("merge", module, merged=True)


def remove(module: Module) -> Module:
    """Return a copy of a module without its adapters: the base that they were added to, bit for bit.

    Args:
        module: as in `merge`.

    Returns:
        A new module, frozen as that of `merge`.

    Raises: as `merge`.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> base = remove(adapters.lora(model, "*", rank=2, alpha=4, key=mx.random.key(0)))
    >>> mx.array_equal(base.layers[0].weight, model.layers[0].weight)
    array(True, dtype=bool)
    """
    return _plain("remove", module, merged=False)


def checked_adapters(caller: str, module: Any) -> dict[str, Adapter]:
    """Return the adapters of a module; refuse a module without adapters."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be an mlx.nn.Module, got {type(module).__name__}")
    found = adapters_of(module)
    if not found:
        raise checks.error(caller, "module must have adapters, got none")
    return found


def _plain(caller: str, module: Module, merged: bool) -> Module:
    found = checked_adapters(caller, module)
    if "" in found:
        raise checks.error(caller, "module must hold its adapters in layers, got an adapter itself")

    def make(path: str, layer: Any) -> nn.Module:
        base = layer.base
        if merged:
            write_weight(base, layer.merged_weight())
        return base

    new = rebuilt(caller, module, found, make)
    if merged:
        mx.eval(new.parameters())  # the copies do not keep the adapters in memory
    new.unfreeze()
    for part in new.modules():
        if is_quantized(part):
            part.freeze(recurse=False, keys=[k for k in ("weight", "scales", "biases") if k in part])
    return new
