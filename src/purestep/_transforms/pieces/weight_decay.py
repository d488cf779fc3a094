"""Weight decay, added to the updates: decoupled from the gradient's own scaling."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.masks import Mask, resolve_mask


def add_decayed_weights(weight_decay: float | mx.array = 0.0, mask: Mask | None = None) -> GradientTransform:
    """Add `weight_decay * param` to the updates of the selected parameters.

    Placed after `scale_by_adam` and before `scale_by_learning_rate` it is AdamW's decoupled decay.

    Args:
        weight_decay: at least 0.
        mask: which parameters decay, as in `masked`: a tree of Python booleans built like the parameters,
            a function from the parameters to one such as `matrices`, or of `(path, leaf)`. `None`: all.

    Raises:
        ValueError: at update, if params is not given or the mask is built differently, with the path.

    Reference: Loshchilov and Hutter, arXiv:1711.05101.

    >>> decay = add_decayed_weights(0.1, mask={"w": True, "b": False})
    >>> params = {"w": mx.array(2.0), "b": mx.array(2.0)}
    >>> decay.update({"w": mx.array(1.0), "b": mx.array(1.0)}, (), params)[0]
    {'w': array(1.2, dtype=float32), 'b': array(1, dtype=float32)}
    """
    weight_decay = checks.number("add_decayed_weights", "weight_decay", weight_decay, least=0)

    def decay(updates: Updates, params: Params | None) -> Updates:
        if params is None:
            raise checks.error("add_decayed_weights", "params is needed: call update(updates, state, params)")
        selected = resolve_mask("add_decayed_weights", True if mask is None else mask, params)

        def add(update: mx.array, param: mx.array, chosen: bool) -> mx.array:
            decayed = update + weight_decay * param.astype(update.dtype)
            return decayed.astype(update.dtype) if chosen else update

        return tree.map(add, updates, params, selected)

    return without_state("add_decayed_weights", decay)


def matrices(params: Params) -> Tree:
    """Select the parameters of two or more axes: a mask that spares biases, norms and other vectors.

    >>> matrices({"weight": mx.zeros((2, 3)), "bias": mx.zeros(2)})
    {'weight': True, 'bias': False}
    """
    return tree.map(lambda p: p.ndim >= 2, params)
