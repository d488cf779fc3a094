"""The arrays of a model by the names that other programs use."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.files.fitting import plain_name
from purestep._core import checks, tree
from purestep._core.packing import unpacked
from purestep._core.types import Params, Tree
from purestep._modules.slots import slots_of
from purestep._steps.state import TrainState, check_arrays


def named_arrays(
    caller: str, model: nn.Module | Params, params: Params | None, model_state: Tree | None
) -> dict[str, mx.array]:
    """Return the arrays of a module or of a tree, with those given in place of the module's.

    An array in several places of a module has its first name alone.

    Raises:
        TypeError: for a model that is neither a module nor a tree of arrays, or is a state.
        ValueError: for a module with adapters; for arrays without a place in the module, or of another
            shape; for two arrays of one name; for an array that no file can hold; if there is no array.
    """
    if isinstance(model, TrainState):
        raise TypeError(
            f"{caller}: model must be a module or parameters, got a TrainState: give state.params"
        )
    if isinstance(model, nn.Module):
        params = unpacked(params)
        found = _of_module(caller, model, {"params": params, "model_state": model_state})
    else:
        for name, given in (("params", params), ("model_state", model_state)):
            if given is not None:
                raise checks.error(caller, f"{name} must be None for a model that is no mlx.nn.Module")
        check_arrays(caller, "model", model)
        model = unpacked(model)
        tensors.check_storable(caller, model)
        found = dict(tree.items(model))
    if not found:
        raise checks.error(caller, "model must have arrays, got none")
    tensors.check_arrays_storable(caller, "model", found)
    named: dict[str, mx.array] = {}
    paths: dict[str, str] = {}
    for path, array in found.items():
        name = plain_name(path)
        if name in named:
            raise checks.error(caller, f"{paths[name]} and {path} would both be named {name}: rename one key")
        named[name], paths[name] = array, path
    return named


def _of_module(caller: str, module: nn.Module, trees: dict[str, Any]) -> dict[str, mx.array]:
    found = {path: places[0].read() for path, places in slots_of(module).items()}
    for path in found:
        if path.rpartition(".")[2] == "lora_a":
            raise checks.error(
                caller,
                f"model must have no adapters, got {path}: merge them first, as ps.adapters.merge does, or "
                "save them alone with ps.adapters.save",
            )
    lines = []
    for name, given in trees.items():
        if given is None:
            continue
        check_arrays(caller, name, given)
        if name == "params" and not tree.leaves(given):
            raise checks.error(caller, "params must have arrays, got none")
        for path, array in tree.items(given):
            if path not in found:
                lines.append(f"{tree.join(name, path)} is not in the module")
            elif array.shape != found[path].shape:
                lines.append(
                    f"{tree.join(name, path)} has shape {array.shape}, {found[path].shape} in the module"
                )
            else:
                found[path] = array
    if lines:
        raise checks.error(caller, "these arrays do not fit the module:\n  " + "\n  ".join(lines))
    return found
