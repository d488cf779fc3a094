"""The state of a training run as one immutable value, and the checks on it."""

import copy
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks, tree
from purestep._core.rng import check_key, fold_in, from_seed, scope
from purestep._core.types import Params, Tree
from purestep._transforms.core.base import GradientTransform, check_floating, check_transform

_INIT = 0x696E  # folded into the key of the run for the draws of `transform.init`


class TrainState(NamedTuple):
    """The state of a training run. It holds only arrays and is immutable, so every snapshot is consistent.

    Attributes:
        params: the trained parameters, a tree of floating-point arrays.
        opt_state: the state of the gradient transform.
        step: 0-d int32, the number of steps made.
        rng: uint32 [2], the key that the next step splits.
        model_state: arrays that the forward pass updates, such as running statistics; `{}` if there are none.
    """

    params: Params
    opt_state: Tree
    step: mx.array
    rng: mx.array
    model_state: Tree

    @classmethod
    def create(
        cls,
        params: Params,
        transform: GradientTransform,
        *,
        seed: int = 0,
        rng: mx.array | None = None,
        model_state: Tree = None,
    ) -> "TrainState":
        """Return the state before the first step.

        Args:
            params: a tree of floating-point arrays.
            transform: its `init` makes the optimizer state.
            seed: an integer in [0, 2**64), from which the key of the run is made if `rng` is not given.
            rng: the key of the run, uint32 [2].
            model_state: the third value that `functional` returns; `None` is `{}`.

        Raises:
            TypeError: for a leaf that is not an array, such as a Python number, with its path.
            ValueError: if a parameter is not floating-point, or if `params` has no arrays.

        >>> import purestep as ps
        >>> state = ps.TrainState.create({"w": mx.zeros(3)}, ps.optimizers.sgd(0.1))
        >>> state.step
        array(0, dtype=int32)
        """
        caller = "TrainState.create"
        check_transform(caller, "transform", transform)
        check_arrays(caller, "params", params)
        if not tree.leaves(params):
            raise checks.error(caller, "params must hold at least one array, got none")
        check_floating(caller, params)
        check_arrays(caller, "model_state", model_state)
        if rng is None:
            rng = from_seed(caller, "seed", seed)
        check_key(caller, rng)
        with scope(fold_in(rng, _INIT)):
            opt_state = transform.init(tree.map(copy.copy, params))
        check_arrays(caller, "opt_state", opt_state)
        model_state = {} if model_state is None else model_state  # mx.vmap and mx.grad refuse None
        return cls(params, opt_state, mx.array(0, mx.int32), rng, model_state)

    def replace(self, **changes: Any) -> "TrainState":
        """Return the state with some fields changed.

        `mx.load` and `tree_unflatten` drop containers without arrays. `replace` puts them back into `params`
        and `model_state`.

        >>> import purestep as ps
        >>> state = ps.TrainState.create({"w": mx.zeros(3)}, ps.optimizers.sgd(0.1))
        >>> state.replace(step=mx.array(7, mx.int32)).step
        array(7, dtype=int32)
        """
        for name in ("params", "model_state"):
            if name in changes:
                changes[name] = tree.fitted(changes[name], getattr(self, name))
        return self._replace(**changes)


def check_arrays(caller: str, name: str, value: Tree) -> None:
    """Refuse a tree with a leaf that is not an array; the error names the path and a remedy."""
    if all(isinstance(leaf, mx.array) for leaf in tree.leaves(value)):
        return
    for path, leaf in tree.items(value):
        if isinstance(leaf, mx.array):
            continue
        shown = tree.join(name, path)
        kind = type(leaf).__name__
        home = type(leaf).__module__.partition(".")[0]
        if isinstance(leaf, nn.Module):
            raise TypeError(
                f"{caller}: {shown} must hold arrays, got the mlx.nn.Module {kind}; write "
                "apply, params, model_state = purestep.functional(module)"
            )
        if home in ("numpy", "torch", "jax", "jaxlib"):
            raise TypeError(
                f"{caller}: {shown} must be an mx.array, got {home}'s {kind}; write mx.array(...)"
            )
        if isinstance(leaf, (bool, int, float)):
            value = checks.shown(leaf)
            raise TypeError(f"{caller}: {shown} is the Python number {value}; write mx.array({value})")
        raise TypeError(f"{caller}: {shown} must be an mx.array in dicts, lists and tuples, got {kind}")


def check_state(caller: str, state: Any) -> None:
    """Refuse a value that is not a `TrainState` of arrays."""
    if not isinstance(state, TrainState):
        swapped = "; were state and batch swapped?" if isinstance(state, (dict, list, mx.array)) else ""
        kind = "None" if state is None else f"a {type(state).__name__}"
        raise TypeError(f"{caller}: state must be a TrainState, from TrainState.create, got {kind}{swapped}")
    check_arrays(caller, "state", state)
