"""muP: a learning rate tuned on a narrow model that holds for a wide one."""

from collections.abc import Callable
from typing import Any

from purestep.transforms.base import GradientTransform
from purestep.transforms.combining import chain
from purestep.transforms.width import hidden_matrices, scale_by_width
from purestep.types import Tree


def mup(
    optimizer: GradientTransform, width_mult: float, *, mask: Tree | Callable[..., Any] = hidden_matrices
) -> GradientTransform:
    """The optimizer, then `scale_by_width`: the rates of Adam and its kin under muP (arXiv:2203.03466).

    With `m` the width multiplier, matrices learn at `1 / m` of the rate; biases, norms and embeddings
    at the rate itself. What the model has to do (tables 3 and 8 of the paper): hidden matrices start with
    variance 1 / fan_in, attention logits are divided by the head's size, not its root, and of the output
    layer either

    1. the variance at the start is 1 / fan_in ** 2: it is then one of the matrices here (table 3), or
    2. the result is divided by `m`: leave it out through `mask` (table 8).

    The optimizer's updates must not grow with the gradients' scale: Adam, Lion, Adafactor; not SGD, whose
    rates under muP are others. A decoupled decay inside is divided with the rate; to keep it, chain
    `scale_by_adam`, `scale_by_width`, `add_decayed_weights` and `scale_by_learning_rate` yourself.

    Args:
        optimizer: made with the rate that was tuned.
        width_mult: the model's width over that of the tuned one, greater than 0.
        mask: which parameters count as matrices of width, as in `masked`, above all `(path, leaf) -> bool`.

    >>> import mlx.core as mx
    >>> from purestep.optimizers.adam import adam
    >>> transform = mup(adam(0.1), width_mult=4)
    >>> params = {"fc": mx.ones((1, 2)), "bias": mx.ones(1)}
    >>> transform.update(params, transform.init(params), params)[0]
    {'fc': array([[-0.025, -0.025]], dtype=float32), 'bias': array([-0.1], dtype=float32)}
    """
    return chain(optimizer, scale_by_width(width_mult, mask))
