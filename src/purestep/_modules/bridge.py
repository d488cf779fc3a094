"""From an `mlx.nn.Module` to a pure function and its arrays."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from purestep._core import checks, tree
from purestep._core.types import Apply
from purestep._modules.early import refuse_bound_checkpoint
from purestep._modules.recomputing import Remat, chosen
from purestep._modules.running import Runner
from purestep._modules.slots import paths_chosen, slots_of, trained_and_held


def functional(
    module: nn.Module,
    *,
    trainable: str | Sequence[str] | None = None,
    discard: str | Sequence[str] = (),
    own_gradients: bool = True,
    remat: Remat = (),
) -> tuple[Apply, dict[str, Any], dict[str, Any]]:
    """Return a module as `(apply, params, model_state)`: a pure function and its arrays.

    `params` holds the module's trainable arrays under the names of `module.trainable_parameters()`.
    `model_state` holds its other arrays, such as frozen weights and running statistics. An array in several
    places of the module (tied weights) is one leaf, under its first name, and stays tied. `write_back` writes
    trained arrays into a module.

    `apply(params, *args, rng=None, model_state=None, train=None, method=None, **kwargs)` runs the module's
    forward pass with the given arrays. It is a pure function: it leaves the module and the arguments
    unchanged, also when the forward pass raises. You may change or delete the module afterwards: apply runs a
    copy, which does not keep the first weights in memory.

    - With `rng`, a key, the module runs in training mode, and every random draw in it (Dropout) is a
      function of that key. Without `rng` the module runs in evaluation mode. `train=` overrides the mode.
      If only some parts of the module were in evaluation mode (a frozen backbone), they stay in it.
    - With `model_state`, apply returns `(out, model_state)`, with the state after the forward pass.
      Without it, apply returns `out` and uses the arrays that the module held when `functional` was called.
    - `method` is the name of the method to run instead of `__call__`, such as `"decode"`, or a function that
      receives the module before the other arguments.
    - Functions under `mx.checkpoint` or `nn.utils.checkpoint` are recomputed with the arrays, mode and key
      of the call. A function decorated with `mx.checkpoint` at its definition must draw from a key among its
      arguments. Other draws raise an error in a `train_step`; a plain `mx.grad` does not detect them. As in
      MLX, gradients flow only through the arguments of the function and, for `nn.utils.checkpoint`, through
      the parameters of its module.

    Args:
        module: any `mlx.nn.Module`; it is read, never changed.
        trainable: patterns of the arrays in `params`, such as `("*.norm", "head.weight")`; `*` is any text. A
            pattern matches the path of an array or of a layer that holds it. Running statistics stay in
            `model_state`. `write_back` needs the same patterns. By default these are the arrays that
            `module.freeze` has not frozen.
        discard: paths of attributes that the forward pass may change without an effect on later calls, such
            as a cached mask. Patterns such as `"layers.*._mask"` are allowed. Each call starts without the
            change.
        own_gradients: compute with the functions of `ps.layers` instead of MLX's. The values are the same.
            In bfloat16 and float16, the gradients of embeddings, biases and norms are summed in float32; MLX
            sums them in the reduced dtype. The gradients of GELU, Mish and SiLU keep only their input. This
            covers `mlx.nn`'s layers, and `mx.addmm`, `mx.fast.rms_norm` and `mx.fast.layer_norm` in layers of
            your own. Elsewhere call the functions of `ps.layers`, such as `affine`, `lookup` and `gelu`.
        remat: layers whose activations are not kept but recomputed for the gradient, as patterns of paths
            (`"layers.*"`, `"layers.*.self_attn"`) or a function `path -> bool`. If layers within each other
            match, the outermost is recomputed. Gradients are the same, also with Dropout.

    Returns:
        `apply`, `params` and `model_state`; the last two are nested dicts and lists of arrays.

    Raises:
        ValueError: from `functional`, for a pattern of `trainable` or `remat` that matches nothing; for a
            pattern of `trainable` that matches integers, such as quantized weights; if the module's code
            imports `checkpoint` from `mlx.core` by name, or if the module holds a function that `mx.compile`
            or a similar function made around its arrays; if `mlx.nn.fully_shard` has divided its parameters.
        ValueError: from `apply`, if training mode has no key; if random numbers are drawn without a key; if
            `params` or `model_state` do not fit the module; if, in a `train_step`, a layer depends on the
            mode and neither `rng` nor `train` is given; if the forward pass makes a change that would be
            lost. Such changes are those of BatchNorm's statistics without `model_state=`, of trained arrays,
            of arrays under names that start with `_`, and of counters, caches and attributes of plain
            objects.
        TypeError: if `module` is not a module.

    Warns:
        UserWarning: if something in the module, such as a lock, cannot be copied. Apply then runs the module
            itself and restores it after each call, and the first weights stay in memory while `apply` exists.

    >>> import mlx.core as mx
    >>> apply, params, model_state = functional(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)))
    >>> apply(params, mx.ones((3, 4)), rng=mx.random.key(0)).shape
    (3, 2)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"functional: module must be an mlx.nn.Module, got {type(module).__name__}")
    refuse_bound_checkpoint(module)
    _refuse_parts(module)
    slots = slots_of(module)
    paths = None if trainable is None else paths_chosen("functional", module, slots, trainable)
    trained, held = trained_and_held(module, slots, paths)
    # New handles of the same data: writing into the module's arrays does not change these trees.
    params, model_state = tree.map(copy.copy, trained), tree.map(copy.copy, held)
    patterns = (discard,) if isinstance(discard, str) else tuple(discard)
    recomputed = chosen(module, remat).values() if remat else ()
    return (
        Runner(module, slots, params, model_state, patterns, own_gradients, recomputed).apply,
        params,
        model_state,
    )


def _refuse_parts(module: nn.Module) -> None:
    """Refuse parameters of which each process holds a part: norms would be those of the part."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.FullyShardedModule):
            raise checks.error(
                "functional",
                f"module must hold whole parameters, got {path or 'a module'} from mlx.nn.fully_shard; "
                "divide the optimizer state instead, by ps.sharded",
            )
