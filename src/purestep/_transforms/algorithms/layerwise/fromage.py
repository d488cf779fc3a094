"""Fromage: steps relative to each layer's norm, with a learning rate that needs little tuning."""

import mlx.core as mx

from purestep._core.types import ScalarOrSchedule
from purestep._transforms.algorithms.layerwise.trust_ratio import scale_by_trust_ratio
from purestep._transforms.core.base import GradientTransform
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.block import step_on_sphere


def fromage(learning_rate: ScalarOrSchedule, min_norm: float | mx.array = 1e-6) -> GradientTransform:
    """Chain `scale_by_trust_ratio` and `step_on_sphere` (arXiv:2002.03432).

    Args:
        learning_rate: as in `step_on_sphere`.
        min_norm: as in `scale_by_trust_ratio`.

    >>> transform, params = fromage(0.75), {"w": mx.array([4.0, 0.0])}
    >>> transform.update({"w": mx.array([0.0, 2.0])}, transform.init(params), params)[0]
    {'w': array([-0.8, -2.4], dtype=float32)}
    """
    return chain(scale_by_trust_ratio(min_norm), step_on_sphere(learning_rate))
