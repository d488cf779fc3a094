"""Updates scaled by the size of their parameters, one array at a time."""

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.core.base import GradientTransform, checked, required, taking_extra
from purestep._transforms.core.leafwise import block_norm, block_rms, leafwise
from purestep._transforms.pieces.scaling import ScaleByLearningRateState, scale_by_learning_rate


def scale_by_param_block_norm(min_scale: float | mx.array = 1e-3) -> GradientTransform:
    """Multiply each array of updates by the norm of its parameter, or by `min_scale` if that is larger.

    Norms and updates are float32.

    Args:
        min_scale: at least 0. A value above 0 lets parameters that are zero change.

    Raises:
        ValueError: at update, if params is not given, or if shapes differ, with the path.

    Reference: Bernstein et al., arXiv:2002.03432.

    >>> params = {"w": mx.array([3.0, 4.0])}
    >>> scale_by_param_block_norm().update({"w": mx.array([1.0, 0.0])}, (), params)[0]
    {'w': array([5, 0], dtype=float32)}
    """
    caller = "scale_by_param_block_norm"
    min_scale = checks.number(caller, "min_scale", min_scale, least=0)
    return leafwise(caller, lambda u, p: u.astype(mx.float32) * mx.maximum(block_norm(p), min_scale))


def scale_by_param_block_rms(min_scale: float | mx.array = 1e-3) -> GradientTransform:
    """Multiply each array of updates by the root mean square of its parameter, or by `min_scale` if larger.

    Arguments, dtypes and errors are those of `scale_by_param_block_norm`.

    Reference: Shazeer and Stern, Adafactor, arXiv:1804.04235, section 8.

    >>> params = {"w": mx.array([2.0, -2.0])}
    >>> scale_by_param_block_rms().update({"w": mx.array([1.0, 0.0])}, (), params)[0]
    {'w': array([2, 0], dtype=float32)}
    """
    caller = "scale_by_param_block_rms"
    min_scale = checks.number(caller, "min_scale", min_scale, least=0)
    return leafwise(caller, lambda u, p: u.astype(mx.float32) * mx.maximum(block_rms(p), min_scale))


def step_on_sphere(learning_rate: ScalarOrSchedule) -> GradientTransform:
    """Take a step of the learning rate, then shrink the parameters, so that their norms do not grow.

    With the rate `r`, a parameter becomes `(param - r * u) / sqrt(1 + r ** 2)`. Its norm is unchanged if
    the update `u` has the same norm and is orthogonal to the parameter.

    Args:
        learning_rate: as in `scale_by_learning_rate`. The state is the same, so the rate is read and set
            in the same way.

    Raises:
        ValueError: at update, if params is not given.

    Reference: Bernstein et al., Fromage, arXiv:2002.03432.

    >>> transform = step_on_sphere(0.75)
    >>> params = {"w": mx.array([4.0, 0.0])}
    >>> transform.update({"w": mx.array([0.0, 4.0])}, transform.init(params), params)[0]
    {'w': array([-0.8, -2.4], dtype=float32)}
    """
    step = scale_by_learning_rate(learning_rate)
    follow = taking_extra(step)

    def update(
        updates: Updates, state: ScaleByLearningRateState, params: Params | None = None
    ) -> tuple[Updates, ScaleByLearningRateState]:
        params = required("step_on_sphere", params)
        updates, state = follow(updates, state)
        root = mx.sqrt(1 + mx.square(state.learning_rate))
        # `1 / root - 1` would lose most digits of a small rate's square.
        shrink, growth = 1 / root, -mx.square(state.learning_rate) / (root * (1 + root))
        return tree.map(
            lambda u, p: shrink * u.astype(mx.float32) + growth * p.astype(mx.float32), updates, params
        ), state

    return checked("step_on_sphere", step.init, update, elementwise=True)
