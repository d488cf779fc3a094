"""Sophia: momentum divided by the Hessian's diagonal and clipped; and two estimators of that diagonal."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, rng, sums, tree
from purestep._core.mean import Mean
from purestep._core.packing import packed_like, unpacked
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.algorithms.adam.adam import ScaleByAdamState, first_state
from purestep._transforms.core import moments
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleBySophiaState(ScaleByAdamState):
    """State of `scale_by_sophia`, like that of Adam with another `nu`.

    Attributes:
        nu: like params, float32, the running mean of the estimates of the Hessian's diagonal.
    """


def scale_by_sophia(
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    mu_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Rescale gradients as Sophia does.

    With `g` the gradient, `n` the number of earlier updates and `h` the `hessian` passed to this update:

        mu = b1 * mu + (1 - b1) * g
        update = clip(mu / (1 - b1 ** (n + 1)) / max(gamma * nu, eps), -clip_threshold, clip_threshold)
        nu = b2 * nu + (1 - b2) * h, if n is a multiple of update_interval and h is given

    While `nu` is zero, as in the first update, the divisor is `eps`. Nearly every element is then clipped:
    the update is the sign of the mean, times `clip_threshold`.

    An estimate costs at least as much as a gradient, and it is ignored unless `n` is a multiple of
    `update_interval`. So make it in a second step, and run that step only when an estimate is due:

        step = ps.compiled(ps.train_step(loss_fn, transform))

        def estimating(state, batch):
            rng, key = mx.random.split(ps.rng.fold_in(state.rng, 1))
            h = hutchinson_diagonal(lambda params: loss_fn(params, batch, rng), state.params, key)
            informed = ps.GradientTransform(transform.init, functools.partial(transform.update, hessian=h))
            return ps.train_step(loss_fn, informed)(state, batch)

        estimating = ps.compiled(estimating)
        for n, batch in enumerate(batches):
            state, metrics = (step if n % 10 else estimating)(state, batch)

    Args:
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of estimates, in [0, 1).
        eps: the smallest divisor, above 0.
        gamma: the factor of `nu` in the divisor, above 0. Raise it until 10 to 50 % of the elements are not
            clipped.
        clip_threshold: the largest absolute value in an update, above 0; `None` does not clip.
        update_interval: the number of updates from one estimate to the next, at least 1.
        mu_dtype: the dtype in which `mu` is stored; `None` is float32.

    Differences from optax:

    1. The estimate is an argument, `update(updates, state, params, hessian=...)`: a tree like the parameters.
       `hutchinson_diagonal` and `gauss_newton_bartlett_diagonal` make it; both are pure functions of a key.
       There is no `hessian_diagonal_fn`. An update without an estimate leaves `nu` unchanged.
    2. `nu` and the updates are float32 for gradients of any dtype.
    3. There is no `verbose` and no `print_win_rate_every_n_steps`: nothing is printed.

    Reference: Liu et al., Sophia, arXiv:2305.14342.

    >>> transform = scale_by_sophia(b1=0.0, b2=0.0, gamma=0.5, update_interval=1)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):  # the sign, then 3 / (0.5 * 8)
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state, hessian={"w": mx.array(8.0)})
    ...     print(updates["w"].item())
    1.0
    0.75
    """
    caller = "scale_by_sophia"
    b1, b2 = moments.decays(caller, b1=b1, b2=b2)
    eps = checks.number(caller, "eps", eps, above=0)
    gamma = checks.number(caller, "gamma", gamma, above=0)
    if clip_threshold is not None:
        clip_threshold = checks.number(caller, "clip_threshold", clip_threshold, above=0)
    update_interval = checks.integer(caller, "update_interval", update_interval, least=1)

    def init(params: Params) -> ScaleBySophiaState:
        return ScaleBySophiaState(*first_state(params, mu_dtype))

    def clipped(m: mx.array, v: mx.array) -> mx.array:
        step = m / mx.maximum(gamma * v, eps)
        return step if clip_threshold is None else mx.clip(step, -clip_threshold, clip_threshold)

    def update(
        updates: Updates,
        state: ScaleBySophiaState,
        params: Params | None = None,
        *,
        hessian: Tree = None,
    ) -> tuple[Updates, ScaleBySophiaState]:
        _, count, mu = moments.advance(updates, state.count, state.mu, b1)
        updates = tree.map(clipped, moments.corrected(mu, b1, count), state.nu)
        nu = state.nu
        if hessian is not None:
            hessian = packed_like(caller, hessian, nu)
            share = mx.where(state.count % update_interval == 0, 1 - b2, 0.0)
            # Selected with `where`, not multiplied by 0: an ignored estimate may be infinite.
            nu = tree.map(
                lambda v, h: mx.where(share > 0, v + share * (h.astype(mx.float32) - v), v), nu, hessian
            )
        return updates, ScaleBySophiaState(count, moments.stored(mu, mu_dtype), nu)

    return checked(caller, init, update, elementwise=True)


def hutchinson_diagonal(loss_fn: Callable[[Params], Any], params: Params, key: mx.array) -> Tree:
    """Estimate the diagonal of the Hessian without bias: `s * (H s)` for random signs `s`.

    Args:
        loss_fn: `loss_fn(params) -> loss`, a 0-d array or a `Mean`, or a pair whose first element is the
            loss. It must be twice differentiable; some `mx.fast` kernels are not.
        params: the parameters at which to estimate.
        key: uint32 [2].

    Returns:
        A float32 tree like params. Elements may be negative. For a diagonal Hessian the estimate is exact.

    Reference: Liu et al., Sophia, arXiv:2305.14342, section 2.3.

    >>> loss_fn = lambda params: (mx.array([1.0, 3.0]) * params["w"] ** 2).sum()
    >>> hutchinson_diagonal(loss_fn, {"w": mx.array([5.0, 5.0])}, mx.random.key(0))
    {'w': array([2, 6], dtype=float32)}
    """
    caller = "hutchinson_diagonal"
    checks.function(caller, "loss_fn", loss_fn)
    rng.check_key(caller, key)
    params = unpacked(params)
    leaves = tree.leaves(params)
    keys = mx.random.split(key, max(len(leaves), 1))
    signs = [
        2 * mx.random.bernoulli(shape=x.shape, key=k).astype(x.dtype) - 1
        for x, k in zip(leaves, keys, strict=False)
    ]

    def loss(leaves: list[mx.array]) -> mx.array:
        value = loss_fn(tree.unflatten(params, leaves))
        value = value[0] if type(value) is tuple else value
        return value.value if isinstance(value, Mean) else value

    def along(leaves: list[mx.array]) -> mx.array:
        gradients = mx.grad(loss)(leaves)
        parts = [sums.total(g.astype(mx.float32) * s) for g, s in zip(gradients, signs, strict=True)]
        return tree.added(parts)

    products = mx.grad(along)(leaves)
    return tree.unflatten(
        params, [s.astype(mx.float32) * h.astype(mx.float32) for s, h in zip(signs, products, strict=True)]
    )


def gauss_newton_bartlett_diagonal(
    logits_fn: Callable[[Params], mx.array],
    params: Params,
    key: mx.array,
    *,
    weights: mx.array | None = None,
) -> Tree:
    """Estimate the diagonal of the Gauss-Newton matrix of a mean cross entropy.

    Targets are sampled from the model's own predictions. With `B` targets and `g` the gradient of their mean
    loss, the estimate is `B * g ** 2`; it is unbiased. It takes one gradient and no second derivatives.

    Args:
        logits_fn: `logits_fn(params) -> logits`, [..., classes].
        params: the parameters at which to estimate.
        key: uint32 [2].
        weights: [...], 1 for predictions to count and 0 for others, such as padding; `None`: all count.

    Returns:
        A float32 tree like params; no element is negative.

    Reference: Liu et al., Sophia, arXiv:2305.14342, section 2.3 and algorithm 2.

    >>> estimate = gauss_newton_bartlett_diagonal(lambda p: p["w"], {"w": mx.zeros((1, 2))}, mx.random.key(0))
    >>> estimate  # the diagonal of p * (1 - p)
    {'w': array([[0.25, 0.25]], dtype=float32)}
    """
    caller = "gauss_newton_bartlett_diagonal"
    checks.function(caller, "logits_fn", logits_fn)
    rng.check_key(caller, key)
    params = unpacked(params)

    def loss(leaves: list[mx.array]) -> tuple[mx.array, mx.array]:
        logits = logits_fn(tree.unflatten(params, leaves)).astype(mx.float32)
        drawn = mx.random.categorical(mx.stop_gradient(logits), key=key)
        chosen = mx.take_along_axis(logits, drawn[..., None].astype(mx.int32), axis=-1)[..., 0]
        mean = Mean.of(mx.logsumexp(logits, axis=-1) - chosen, weights)
        return mean.value, mean.weight

    (_, number), gradients = mx.value_and_grad(loss)(tree.leaves(params))
    return tree.unflatten(params, [number * mx.square(g.astype(mx.float32)) for g in gradients])


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float | mx.array = 1e-4,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    mu_dtype: mx.Dtype | None = None,
) -> GradientTransform:
    """Chain `scale_by_sophia`, `add_decayed_weights` and `scale_by_learning_rate` (arXiv:2305.14342).

    `scale_by_sophia` shows how a step makes the estimate and passes it as `hessian`. It also lists the
    differences from optax.

    Args:
        learning_rate: a number of at least 0, a 0-d array or a schedule.
        b1, b2, eps, gamma, clip_threshold, update_interval, mu_dtype: as in `scale_by_sophia`.
        weight_decay, weight_decay_mask: as in `add_decayed_weights`; the decay is decoupled.

    >>> transform = sophia(0.1, weight_decay=0.0)
    >>> params = {"w": mx.array(1.0)}
    >>> state = transform.init(params)
    >>> updates, state = transform.update({"w": mx.array(2.0)}, state, params, hessian={"w": mx.array(3.0)})
    >>> round(updates["w"].item(), 5)
    -0.1
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
