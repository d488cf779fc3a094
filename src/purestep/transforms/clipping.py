"""Bound the size of updates."""

import mlx.core as mx

from purestep import checks, tree
from purestep.transforms.base import GradientTransform, checked
from purestep.transforms.quotients import factor_within
from purestep.types import Params, Updates


def clip_by_global_norm(max_norm: float) -> GradientTransform:
    """Scale all updates down together so that their joint Euclidean norm is at most `max_norm`.

    `u * max_norm / max(norm, max_norm)`, the norm summed in float32 whatever the leaves' dtypes. There
    is no epsilon: updates within the bound pass unchanged, to the bit. A norm that is not finite, from
    one infinite element or from squares beyond float32, makes every update NaN, so that it shows.

    Args:
        max_norm: greater than 0.

    Reference: Pascanu et al., arXiv:1211.5063.

    >>> updates, _ = clip_by_global_norm(1.0).update({"a": mx.array(3.0), "b": mx.array(4.0)}, ())
    >>> updates
    {'a': array(0.6, dtype=float32), 'b': array(0.8, dtype=float32)}
    """
    max_norm = checks.number("clip_by_global_norm", "max_norm", max_norm, above=0)

    def update(
        updates: Updates,
        state: tuple[()],
        params: Params | None = None,
        *,
        gradients: Updates = None,
        grad_norm: mx.array | None = None,
    ) -> tuple[Updates, tuple[()]]:
        if grad_norm is not None and updates is gradients:
            norm = grad_norm  # train_step has measured these very arrays
        else:
            norm = tree.norm(updates)
        factor = factor_within(max_norm, norm)
        return tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return checked("clip_by_global_norm", lambda params: (), update)
