"""muP: learning rates that depend on the width of the model."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.combining import chain
from purestep._transforms.core.masks import resolve_mask


def hidden_matrices(path: str, leaf: mx.array) -> bool:
    """Select matrices but not embeddings, by (path, leaf): their number of inputs grows with the width.

    A leaf is an embedding if a name in its path is `wte` or `wpe`, or contains `embed`.

    >>> hidden_matrices("layers.0.weight", mx.zeros((2, 3))), hidden_matrices("norm.weight", mx.zeros(3))
    (True, False)
    >>> hidden_matrices("embedding.weight", mx.zeros((2, 3)))
    False
    """
    names = path.lower().split(".")
    return leaf.ndim >= 2 and not any("embed" in name or name in ("wte", "wpe") for name in names)


def scale_by_width(width_mult: float, mask: Tree | Callable[..., Any] = hidden_matrices) -> GradientTransform:
    """Divide the updates of the selected parameters by the width multiplier.

    Before `add_decayed_weights` it does not change the decay. `mup` puts it last.

    Args:
        width_mult: the number of inputs of a unit, divided by that number in the model whose learning rate
            was tuned; above 0.
        mask: the selected parameters, as in `masked`: a function of (path, leaf) or of the params, or a tree
            of booleans.

    Reference: Yang et al., Tensor programs V, arXiv:2203.03466, tables 3 and 8.

    >>> scale_by_width(4.0).update({"fc": mx.ones((1, 2)), "bias": mx.ones(1)}, ())[0]
    {'fc': array([[0.25, 0.25]], dtype=float32), 'bias': array([1], dtype=float32)}
    """
    caller = "scale_by_width"
    width_mult = checks.number(caller, "width_mult", width_mult, above=0)

    def narrow(updates: Updates, params: Params | None) -> Updates:
        chosen = resolve_mask(caller, mask, updates if params is None else params)
        return tree.map(lambda u, wide: (u / width_mult).astype(u.dtype) if wide else u, updates, chosen)

    return without_state(caller, narrow)


def mup(
    optimizer: GradientTransform, width_mult: float, *, mask: Tree | Callable[..., Any] = hidden_matrices
) -> GradientTransform:
    """The optimizer, then `scale_by_width`: learning rates under muP (arXiv:2203.03466).

    With `m` the width multiplier, matrices learn at `1 / m` of the learning rate. Biases, norms and
    embeddings learn at the whole rate. The model must follow tables 3 and 8 of the paper: hidden matrices
    start with variance 1 / fan_in, attention logits are divided by the head's size instead of its root, and
    the output layer either

    1. starts with variance 1 / fan_in ** 2 and is one of the selected matrices (table 3), or
    2. divides its result by `m` and is left out by `mask` (table 8).

    The updates of the optimizer must not grow with the scale of the gradients. This holds for Adam, Lion and
    Adafactor, and not for SGD, which has other learning rates under muP. A decoupled weight decay inside
    the optimizer is divided too. To keep it, chain `scale_by_adam`, `scale_by_width`, `add_decayed_weights`
    and `scale_by_learning_rate` yourself.

    Args:
        optimizer: made with the tuned learning rate.
        width_mult: the model's width divided by that of the tuned model, greater than 0.
        mask: the matrices whose updates are divided, as in `scale_by_width`.

    >>> import mlx.core as mx
    >>> from purestep.optimizers import adam
    >>> transform = mup(adam(0.1), width_mult=4)
    >>> params = {"fc": mx.ones((1, 2)), "bias": mx.ones(1)}
    >>> transform.update(params, transform.init(params), params)[0]
    {'fc': array([[-0.025, -0.025]], dtype=float32), 'bias': array([-0.1], dtype=float32)}
    """
    return chain(optimizer, scale_by_width(width_mult, mask))
