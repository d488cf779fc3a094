"""SM3: Adagrad's sums of squares, kept as one vector for each axis."""

from functools import reduce
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate


class ScaleBySM3State(NamedTuple):
    """State of `scale_by_sm3`.

    Attributes:
        mu: for each parameter a tuple of float32 vectors, one for each axis, with the length of that axis. An
            element bounds the sums of squares at its index. A 0-d parameter has one array of shape [].
        nu: like params, float32, the running mean of updates.
    """

    mu: Tree
    nu: Tree


def scale_by_sm3(b1: float = 0.9, b2: float = 1.0, eps: float = 1e-8) -> GradientTransform:
    """Divide gradients by the root of a bound on their sums of squares, then take a running mean.

    The state of a matrix has one number for each row and one for each column. With `row` and `col` these
    numbers and `g` the gradient at index `i, j`:

        a = min(row[i], col[j]) + g ** 2
        row[i], col[j] = max(a over j), max(a over i)
        nu = b1 * nu + (1 - b1) * g / sqrt(a + eps)
        update = nu

    With `b2` below 1 the sum is a running mean: `a = b2 * min(row[i], col[j]) + (1 - b2) * g ** 2`. For an
    array of one axis the state is `a` itself, as in Adagrad.

    Args:
        b1: decay of the running mean of updates, in [0, 1).
        b2: decay of the squares, in [0, 1]; with 1 the squares are summed.
        eps: added inside the root, at least 0.

    Differences from optax:

    1. Parameters may be 0-d; optax fails for them.
    2. The state and the updates are float32 for gradients of any dtype.

    Reference: Anil et al., arXiv:1901.11150.

    >>> transform = scale_by_sm3(b1=0.0)
    >>> state = transform.init({"w": mx.zeros((1, 2))})
    >>> updates, state = transform.update({"w": mx.array([[3.0, 4.0]])}, state)
    >>> state.mu["w"]
    (array([16], dtype=float32), array([9, 16], dtype=float32))
    >>> updates
    {'w': array([[1, 1]], dtype=float32)}
    """
    caller = "scale_by_sm3"
    (b1,) = moments.decays(caller, b1=b1)
    b2 = checks.number(caller, "b2", b2, least=0, most=1)
    (eps,) = moments.epsilons(caller, eps=eps)
    fresh = 1 - b2 if b2 != 1 else 1.0

    def vectors(param: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.zeros((size,)) for size in param.shape) or (mx.array(0.0),)

    def init(params: Params) -> ScaleBySM3State:
        return ScaleBySM3State(tree.map(vectors, params), moments.zeros(params))

    def update(
        updates: Updates, state: ScaleBySM3State, params: Params | None = None
    ) -> tuple[Updates, ScaleBySM3State]:
        # `mu` has a tuple where `updates` has a leaf, so its vectors are looked up by path.
        found = dict(tree.items(state.mu))

        def bound(path: str, g: mx.array) -> mx.array:
            each = [found.pop(tree.join(path, str(axis)), None) for axis in range(max(g.ndim, 1))]
            sizes = [v.size for v in each if v is not None]
            if sizes != (list(g.shape) or [1]):
                raise checks.error(caller, f"{path} in updates does not match the params of the state")
            if g.ndim:
                each = [
                    v.reshape([-1 if a == axis else 1 for a in range(g.ndim)]) for axis, v in enumerate(each)
                ]
            return b2 * reduce(mx.minimum, each) + fresh * mx.square(g)

        def highest(a: mx.array) -> tuple[mx.array, ...]:
            if a.size == 0:
                return vectors(a)
            axes = range(max(a.ndim, 1))
            return tuple(a.max(axis=[o for o in axes if o != axis]) if a.ndim > 1 else a for axis in axes)

        def divided(g: mx.array, a: mx.array) -> mx.array:
            zero = a == 0  # its root has no derivative
            return mx.where(zero, 0.0, g * mx.rsqrt(mx.where(zero, 1.0, a + eps)))

        gradients = moments.float32(updates)
        bounds = tree.map_with_path(bound, gradients)
        if found:
            raise checks.error(caller, f"{next(iter(found))} is in the state, not in updates")
        scaled = tree.map(divided, gradients, bounds)
        nu = moments.mean(scaled, state.nu, b1)
        return nu, ScaleBySM3State(tree.map(highest, bounds), nu)

    return checked(caller, init, update)


def sm3(learning_rate: ScalarOrSchedule, momentum: float = 0.9) -> GradientTransform:
    """Chain `scale_by_sm3` and `scale_by_learning_rate` (arXiv:1901.11150).

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        momentum: `b1` of `scale_by_sm3`, in [0, 1).

    >>> transform, params = sm3(0.1, momentum=0.0), {"w": mx.array([1.0, 2.0])}
    >>> transform.update({"w": mx.array([3.0, -4.0])}, transform.init(params), params)[0]
    {'w': array([-0.1, 0.1], dtype=float32)}
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
