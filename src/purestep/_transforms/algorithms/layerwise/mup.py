"""muP: learning rates that depend on the width of a layer."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, without_state
from purestep._transforms.core.combining import chain
from purestep._transforms.core.masks import resolve_mask


def hidden_matrices(path: str, leaf: mx.array) -> bool:
    """Return whether a leaf is a matrix whose number of inputs grows with the width, so not an embedding.

    A leaf counts as an embedding if a name in its path is `wte` or `wpe`, or contains `embed`.

    >>> hidden_matrices("layers.0.weight", mx.zeros((2, 3))), hidden_matrices("norm.weight", mx.zeros(3))
    (True, False)
    >>> hidden_matrices("embedding.weight", mx.zeros((2, 3)))
    False
    """
    names = path.lower().split(".")
    return leaf.ndim >= 2 and not any("embed" in name or name in ("wte", "wpe") for name in names)


def scale_by_width(width_mult: float, mask: Tree | Callable[..., Any] = hidden_matrices) -> GradientTransform:
    """Divide the updates of the selected parameters by `width_mult`.

    Placed before `add_decayed_weights`, it does not change the decay; `mup` places it last.

    Args:
        width_mult: the number of inputs of a unit, divided by that in the model whose learning rates were
            tuned; above 0.
        mask: selects the parameters, as in `masked`: a function of (path, leaf) or of the params, or a tree
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

    return without_state(caller, narrow, elementwise=True)


def mup(
    optimizer: GradientTransform, width_mult: float, *, mask: Tree | Callable[..., Any] = hidden_matrices
) -> GradientTransform:
    """Chain an optimizer and `scale_by_width`: learning rates under muP, for Adam and similar optimizers.

    With `m` the width multiplier, matrices learn at `1 / m` of the learning rate; biases, norms and
    embeddings learn at the full rate. muP also has rules for the model (tables 3 and 8 of the paper).
    Initialize hidden matrices with variance 1 / fan_in. Divide attention logits by the size of a head, not by
    its root. For the output layer, choose one:

    1. Initialize it with variance 1 / fan_in ** 2, and let `mask` select it like other matrices (table 3).
    2. Divide its result by `m`, and exclude it through `mask` (table 8).

    The size of the optimizer's updates must not depend on the scale of the gradients: use Adam, Lion or
    Adafactor, not SGD, which has other rates under muP. A decoupled weight decay inside the optimizer is
    divided too. To keep the decay, chain `scale_by_adam`, `scale_by_width`, `add_decayed_weights` and
    `scale_by_learning_rate`.

    Args:
        optimizer: an optimizer with the learning rate that was tuned for the narrower model.
        width_mult, mask: as in `scale_by_width`.

    Reference: Yang et al., arXiv:2203.03466.

    >>> from purestep.optimizers import adam
    >>> transform, params = mup(adam(0.1), width_mult=4), {"fc": mx.ones((1, 2)), "bias": mx.ones(1)}
    >>> transform.update(params, transform.init(params), params)[0]
    {'fc': array([[-0.025, -0.025]], dtype=float32), 'bias': array([-0.1], dtype=float32)}
    """
    return chain(optimizer, scale_by_width(width_mult, mask))
