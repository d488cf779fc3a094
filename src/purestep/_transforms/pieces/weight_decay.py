"""Weight decay that is added to the updates."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, required, without_state
from purestep._transforms.core.masks import Mask, resolve_mask


def add_decayed_weights(weight_decay: float | mx.array = 0.0, mask: Mask | None = None) -> GradientTransform:
    """Add `weight_decay * param` to the updates of the selected parameters.

    Between `scale_by_adam` and `scale_by_learning_rate` it is AdamW's decoupled weight decay.

    Args:
        weight_decay: at least 0.
        mask: selects the parameters that decay, in any form that `masked` accepts, such as `matrices` or
            `by_path("*.weight")`. `None` selects all.

    Raises:
        ValueError: at update, if params is not given; or if the mask's structure differs from the
            parameters', with the path.

    Reference: Loshchilov and Hutter, arXiv:1711.05101.

    >>> decay = add_decayed_weights(0.1, mask={"w": True, "b": False})
    >>> params = {"w": mx.array(2.0), "b": mx.array(2.0)}
    >>> decay.update({"w": mx.array(1.0), "b": mx.array(1.0)}, (), params)[0]
    {'w': array(1.2, dtype=float32), 'b': array(1, dtype=float32)}
    """
    weight_decay = checks.number("add_decayed_weights", "weight_decay", weight_decay, least=0)

    def decay(updates: Updates, params: Params | None) -> Updates:
        params = required("add_decayed_weights", params)

        def add(update: mx.array, param: mx.array, chosen: bool = True) -> mx.array:
            if not chosen:
                return update
            return (update + weight_decay * param.astype(update.dtype)).astype(update.dtype)

        if mask is None:
            return tree.map(add, updates, params)
        return tree.map(add, updates, params, resolve_mask("add_decayed_weights", mask, params))

    return without_state("add_decayed_weights", decay, elementwise=True)


def matrices(params: Params) -> Tree:
    """Return a mask of the parameters with two or more axes; biases, norms and other vectors are excluded.

    >>> matrices({"weight": mx.zeros((2, 3)), "bias": mx.zeros(2)})
    {'weight': True, 'bias': False}
    """
    return tree.map(lambda p: p.ndim >= 2, params)
