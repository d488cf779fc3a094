"""AdaBelief: gradients divided by their distance from their running mean."""

from purestep._core import tree
from purestep._core.types import Params, ScalarOrSchedule, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, first_state
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleByBeliefState(ScaleByAdamState):
    """State of `scale_by_belief`, like that of Adam with another `nu`.

    Attributes:
        nu: like params, float32, the running mean of the squared distance between gradients and `mu`.
    """


def scale_by_belief(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Rescale gradients as Adam does, but divide by their deviation from the running mean.

    With `g` the gradient and `t` the number of this update, counted from 1:

        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * (g - mu) ** 2 + eps_root
        update = (mu / (1 - b1 ** t)) / (sqrt(nu / (1 - b2 ** t)) + eps)

    With `nesterov`, the numerator is `b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1 ** t)`.

    As in the paper, `eps_root` is added to `nu` at every update; its sum approaches `eps_root / (1 - b2)`. If
    gradients hardly
    vary, steps become much longer than the learning rate. The method intends this.

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squared distances, in [0, 1).
        eps: added outside the root, at least 0.
        eps_root: added to `nu` at every update, at least 0.
        nesterov: use Nesterov momentum.

    Differences from optax:

    1. The state and the updates are float32 for gradients of any dtype.

    Reference: Zhuang et al., AdaBelief optimizer, arXiv:2010.07468.

    >>> import mlx.core as mx
    >>> transform = scale_by_belief()
    >>> updates, _ = transform.update({"w": mx.array(5.0)}, transform.init({"w": mx.array(0.0)}))
    >>> round(updates["w"].item(), 4)  # 5 / 4.5: the mean is 0.5, the distance 4.5
    1.1111
    """
    b1, b2 = moments.decays("scale_by_belief", b1=b1, b2=b2)
    eps, eps_root = moments.epsilons("scale_by_belief", eps=eps, eps_root=eps_root)

    def init(params: Params) -> ScaleByBeliefState:
        return ScaleByBeliefState(*first_state(params))

    def update(
        updates: Updates, state: ScaleByBeliefState, params: Params | None = None
    ) -> tuple[Updates, ScaleByBeliefState]:
        gradients, count, mu = moments.advance(updates, state.count, state.mu, b1)
        distance = tree.map(lambda g, m: g - m, gradients, mu)
        nu = tree.map(lambda v: v + eps_root, moments.mean_square(distance, state.nu, b2))
        direction = moments.direction(mu, gradients, b1, count, nesterov=nesterov)
        square = moments.corrected(nu, b2, count)
        updates = tree.map(lambda d, v: moments.rescaled(d, v, eps), direction, square)
        return updates, ScaleByBeliefState(count, mu, nu)

    return checked("scale_by_belief", init, update, elementwise=True)


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransform:
    """Chain `scale_by_belief` and `scale_by_learning_rate` (arXiv:2010.07468).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, eps_root, nesterov: as in `scale_by_belief`.

    >>> import mlx.core as mx
    >>> transform, params = adabelief(0.9), {"w": mx.array(1.0)}
    >>> transform.update({"w": mx.array(2.0)}, transform.init(params), params)[0]
    {'w': array(-1, dtype=float32)}
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )
