"""Sophia: momentum divided by an estimate of the Hessian's diagonal, and clipped; with its estimators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, rng, scalars, sums, tree
from purestep._core.mean import Mean
from purestep._core.types import Params, ScalarOrSchedule, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked
from purestep._transforms.core.combining import chain
from purestep._transforms.core.moments import bias_correction
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights


class ScaleBySophiaState(NamedTuple):
    """State of `scale_by_sophia`.

    Attributes:
        count: 0-d int32, updates made.
        mu: like params, the running mean of gradients; float32 unless `mu_dtype` says otherwise.
        nu: like params, float32, the running mean of estimates of the Hessian's diagonal.
    """

    count: mx.array
    mu: Tree
    nu: Tree


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

    With `g` the gradient, `n` the updates made before and `h` what is passed to this update as `hessian`:

        mu = b1 * mu + (1 - b1) * g
        update = clip(mu / (1 - b1 ** (n + 1)) / max(gamma * nu, eps), -clip_threshold, clip_threshold)
        nu = b2 * nu + (1 - b2) * h, when n is a multiple of update_interval and h is given

    It differs from optax in these points:

    1. The estimate comes in as `update(updates, state, params, hessian=...)`, a tree like the parameters,
       in the place of a transform `hessian_diagonal_fn`: see `hutchinson_diagonal` and
       `gauss_newton_bartlett_diagonal`, pure functions of a key. An update without one keeps `nu`.
    2. `nu` and the updates are float32.
    3. Nothing is printed: no `verbose`, no `print_win_rate_every_n_steps`.

    While `nu` is zero, as in the first update, every step is clipped: it is the sign of the mean.

    The estimate costs about as much as a gradient, and what is passed at other counts is left out. So let
    a second step make it, and run that one where it is due:

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
        eps: the least divisor, above 0.
        gamma: a factor on the divisor, above 0; raise it until 10 to 50 % of the entries are not clipped.
        clip_threshold: above 0; `None` does not clip.
        update_interval: updates from one estimate to the next, at least 1.
        mu_dtype: the dtype in which `mu` is stored.

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
    b1 = checks.number(caller, "b1", b1, least=0, below=1)
    b2 = checks.number(caller, "b2", b2, least=0, below=1)
    eps = checks.number(caller, "eps", eps, above=0)
    gamma = checks.number(caller, "gamma", gamma, above=0)
    if clip_threshold is not None:
        clip_threshold = checks.number(caller, "clip_threshold", clip_threshold, above=0)
    update_interval = checks.integer(caller, "update_interval", update_interval, least=1)

    def init(params: Params) -> ScaleBySophiaState:
        return ScaleBySophiaState(
            count=mx.array(0, mx.int32),
            mu=tree.zeros_like(params, mu_dtype or mx.float32),
            nu=tree.zeros_like(params, mx.float32),
        )

    def direction(m: mx.array, v: mx.array) -> mx.array:
        step = m / mx.maximum(gamma * v, eps)
        return step if clip_threshold is None else mx.clip(step, -clip_threshold, clip_threshold)

    def update(
        updates: Updates,
        state: ScaleBySophiaState,
        params: Params | None = None,
        *,
        hessian: Tree = None,
    ) -> tuple[Updates, ScaleBySophiaState]:
        count = scalars.increment(state.count)
        mu = tree.map(
            lambda g, m: b1 * m.astype(mx.float32) + (1 - b1) * g.astype(mx.float32), updates, state.mu
        )
        scale = 1 / bias_correction(b1, count)
        updates = tree.map(lambda m, v: direction(scale * m, v), mu, state.nu)
        nu = state.nu
        if hessian is not None:
            share = mx.where(state.count % update_interval == 0, 1 - b2, 0.0)
            # Chosen, not multiplied: what is left out may be infinite.
            nu = tree.map(
                lambda v, h: mx.where(share > 0, v + share * (h.astype(mx.float32) - v), v), nu, hessian
            )
        if mu_dtype is not None:
            mu = tree.map(lambda m: m.astype(mu_dtype), mu)
        return updates, ScaleBySophiaState(count, mu, nu)

    return checked(caller, init, update)


def hutchinson_diagonal(loss_fn: Callable[[Params], Any], params: Params, key: mx.array) -> Tree:
    """Estimate the diagonal of the Hessian: `s * (H s)` for random signs `s`, which is right on average.

    Args:
        loss_fn: `loss_fn(params) -> loss`, a 0-d array or a `Mean`; a pair is taken to begin with it. It
            must be differentiable twice: `mx.fast` kernels are not, everywhere.
        params: where.
        key: uint32 [2].

    Returns:
        A float32 tree like params; entries may be negative, and exact ones need a diagonal Hessian.

    Reference: Liu et al., Sophia, arXiv:2305.14342, section 2.3.

    >>> loss_fn = lambda params: (mx.array([1.0, 3.0]) * params["w"] ** 2).sum()
    >>> hutchinson_diagonal(loss_fn, {"w": mx.array([5.0, 5.0])}, mx.random.key(0))
    {'w': array([2, 6], dtype=float32)}
    """
    caller = "hutchinson_diagonal"
    checks.function(caller, "loss_fn", loss_fn)
    rng.check_key(caller, key)
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
    """Estimate the diagonal of the Gauss-Newton matrix of a mean cross entropy; never negative.

    Targets are drawn from the model's own predictions; with `B` of them and `g` the gradient of their mean
    loss, the estimate is `B * g ** 2`, which is right on average. One gradient, no second derivatives.

    Args:
        logits_fn: `logits_fn(params) -> logits`, [..., classes].
        params: where.
        key: uint32 [2].
        weights: [...], 1 for predictions that count and 0 for those that do not, such as padding.

    Returns:
        A float32 tree like params.

    Reference: Liu et al., Sophia, arXiv:2305.14342, section 2.3 and algorithm 2.

    >>> estimate = gauss_newton_bartlett_diagonal(lambda p: p["w"], {"w": mx.zeros((1, 2))}, mx.random.key(0))
    >>> estimate  # the diagonal of p * (1 - p)
    {'w': array([[0.25, 0.25]], dtype=float32)}
    """
    caller = "gauss_newton_bartlett_diagonal"
    checks.function(caller, "logits_fn", logits_fn)
    rng.check_key(caller, key)

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
    """`scale_by_sophia`, `add_decayed_weights`, then `scale_by_learning_rate` (arXiv:2305.14342).

    It differs from optax as `scale_by_sophia` says: `update` is handed an estimate of the Hessian's
    diagonal as `hessian=`, and there is no `hessian_diagonal_fn`, `verbose` or
    `print_win_rate_every_n_steps`. How a step makes the estimate is shown there.

    Args:
        learning_rate: a number of at least 0, or a schedule.
        b1: as in `scale_by_sophia`.
        b2: decay of the mean of estimates.
        eps: the least divisor.
        weight_decay: decoupled, at least 0.
        weight_decay_mask: which parameters decay, as in `add_decayed_weights`.
        gamma: as in `scale_by_sophia`, like the arguments that follow.
        clip_threshold: the largest entry of an update, before the learning rate.
        update_interval: updates from one estimate to the next.
        mu_dtype: the dtype in which the mean of gradients is stored.

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
