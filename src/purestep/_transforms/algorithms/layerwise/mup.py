"""Rates that depend on width: what muP asks of an optimizer."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.combining import chain
from purestep._transforms.core.masks import resolve_mask


def hidden_matrices(path: str, leaf: mx.array) -> bool:
    """Select matrices, by (path, leaf), but not embeddings: what grows with width on its input side.

    An embedding is told by its path: a name in it is `wte` or `wpe`, or holds `embed`.

    >>> hidden_matrices("layers.0.weight", mx.zeros((2, 3))), hidden_matrices("norm.weight", mx.zeros(3))
    (True, False)
    >>> hidden_matrices("embedding.weight", mx.zeros((2, 3)))
    False
    """
    names = path.lower().split(".")
    return leaf.ndim >= 2 and not any("embed" in name or name in ("wte", "wpe") for name in names)


def scale_by_width(width_mult: float, mask: Tree | Callable[..., Any] = hidden_matrices) -> GradientTransform:
    """Divide the updates of the selected parameters by how much wider they are than the tuned model's.

    Placed before `add_decayed_weights` it leaves the decay as it is; `mup` puts it after everything.

    Args:
        width_mult: inputs of a unit over inputs of a unit in the model whose rates were tuned, above 0.
        mask: which parameters, as in `masked`: a function of (path, leaf), of the params, or a tree of
            booleans.

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
    >>> from purestep.optimizers import adam
    >>> transform = mup(adam(0.1), width_mult=4)
    >>> params = {"fc": mx.ones((1, 2)), "bias": mx.ones(1)}
    >>> transform.update(params, transform.init(params), params)[0]
    {'fc': array([[-0.025, -0.025]], dtype=float32), 'bias': array([-0.1], dtype=float32)}
    """
    return chain(optimizer, scale_by_width(width_mult, mask))
