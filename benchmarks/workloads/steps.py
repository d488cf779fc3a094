"""Who competes in `step`: the same mathematics, by purestep and by hand.

One step is: split the key; loss and gradients; clip to a global norm of 1; AdamW, bias-corrected, decay
0.01 on every array, the rate warmed up in a line and then cosine; metrics loss, grad_norm (before the
clip) and learning_rate. The state is whole: it holds moments, step number and key.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

import purestep as ps
from purestep._core.types import Batch, Metrics, Params, StepFn

WARMUP, DECAY, PEAK, WEIGHT_DECAY, MAX_NORM = 10, 1000, 1e-3, 0.01, 1.0


class Contestant(NamedTuple):
    """A step, the state to start from, and where in a state the parameters are."""

    step: StepFn
    state: Any
    params: Callable[[Any], Params]


def purestep(model: nn.Module, *, compiled: bool, packed: bool = False) -> Contestant:
    """Return the step that the library builds."""
    apply, own, _ = ps.functional(model)
    params: Any = ps.packed(own) if packed else own

    def loss_fn(params: Params, batch: Batch, rng: mx.array) -> ps.Mean:
        return ps.losses.cross_entropy(apply(params, batch["inputs"], rng=rng), batch["targets"])

    transform = ps.chain(
        ps.transforms.clip_by_global_norm(MAX_NORM),
        ps.optimizers.adamw(
            ps.schedules.warmup_cosine_decay(0.0, PEAK, WARMUP, DECAY), weight_decay=WEIGHT_DECAY
        ),
    )
    step = ps.train_step(loss_fn, transform)
    state = ps.TrainState.create(params, transform)
    return Contestant(ps.compiled(step) if compiled else step, state, lambda state: ps.unpacked(state.params))


class HandState(NamedTuple):
    """What a training run by hand has to carry."""

    params: Params
    mu: Params
    nu: Params
    step: mx.array
    key: mx.array


def by_hand_pure(model: nn.Module, *, compiled: bool) -> Contestant:
    """Return a pure step written out for this one purpose."""

    def loss_fn(params: Params, batch: Batch, key: mx.array) -> mx.array:
        stream = cast(list[mx.array], mx.random.state)
        saved = copy.copy(stream[0])
        stream[0][:] = key
        model.update(params)
        loss = nn.losses.cross_entropy(model(batch["inputs"]), batch["targets"], reduction="mean")
        stream[0][:] = saved
        return loss

    def step(state: HandState, batch: Batch) -> tuple[HandState, Metrics]:
        key, sub = mx.random.split(state.key)
        loss, grads = mx.value_and_grad(loss_fn)(state.params, batch, sub)
        norm = mx.sqrt(sum((mx.square(g).sum() for _, g in named(grads)), mx.array(0.0)))
        clip = mx.minimum(1.0, MAX_NORM / norm)
        rate, count = schedule(state.step), state.step + 1
        mu = tree_map(lambda m, g: 0.9 * m + 0.1 * (g * clip), state.mu, grads)
        nu = tree_map(lambda v, g: 0.999 * v + 0.001 * mx.square(g * clip), state.nu, grads)
        power = count.astype(mx.float32)
        c1, c2 = 1 / (1 - 0.9**power), 1 / (1 - 0.999**power)
        params = tree_map(
            lambda p, m, v: p - rate * (m * c1 / (mx.sqrt(v * c2) + 1e-8) + WEIGHT_DECAY * p),
            state.params,
            mu,
            nu,
        )
        return HandState(params, mu, nu, count, key), {"loss": loss, "grad_norm": norm, "learning_rate": rate}

    params = model.trainable_parameters()
    mu, nu = tree_map(mx.zeros_like, params), tree_map(mx.zeros_like, params)
    state = HandState(params, mu, nu, mx.array(0, mx.int32), mx.random.key(0))
    return Contestant(mx.compile(step) if compiled else step, state, lambda state: state.params)


def by_hand_mutable(model: nn.Module) -> Contestant:
    """Return MLX's documented way: a model, an optimizer and the global stream, captured and mutated."""
    optimizer = optim.AdamW(schedule, weight_decay=WEIGHT_DECAY, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    captured = [model.state, optimizer.state, mx.random.state]

    def loss_fn(batch: Batch) -> mx.array:
        return nn.losses.cross_entropy(model(batch["inputs"]), batch["targets"], reduction="mean")

    loss_and_grad = nn.value_and_grad(model, loss_fn)

    @partial(mx.compile, inputs=captured, outputs=captured)
    def step(batch: Batch) -> Metrics:
        loss, grads = loss_and_grad(batch)
        grads, norm = optim.clip_grad_norm(grads, MAX_NORM)
        optimizer.update(model, grads)
        return {"loss": loss, "grad_norm": norm, "learning_rate": optimizer.learning_rate}

    return Contestant(
        lambda state, batch: (captured, step(batch)), captured, lambda state: model.trainable_parameters()
    )


def named(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a tree of MLX's kind (a module, a dict, a list) with their names."""
    return cast(list[tuple[str, Any]], tree_flatten(tree))


def schedule(count: mx.array) -> mx.array:
    """Return the rate at a count: a line to `PEAK`, half a cosine to zero, zero."""
    count = count.astype(mx.float32)
    angle = mx.minimum(count - WARMUP, DECAY - WARMUP) * (math.pi / (DECAY - WARMUP))
    return mx.where(count < WARMUP, count * (PEAK / WARMUP), 0.5 * PEAK * (1 + mx.cos(angle)))


def disagreement(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """Compare two records of training, `{"metrics", "before", "after"}`.

    Returns:
        The largest relative difference of any metric in any step, and the distance between the final
        parameters as a share of the way they have come.
    """
    worst = 0.0
    for ours, theirs in zip(got["metrics"], want["metrics"], strict=True):
        if ours.keys() != theirs.keys():
            return {"metrics": math.inf, "params": math.inf}
        apart = [abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-12) for name in theirs]
        worst = max([worst, *(math.inf if math.isnan(x) else x for x in apart)])
    if got["after"].keys() != want["after"].keys():
        return {"metrics": worst, "params": math.inf}

    def flat(params: dict[str, list[float]]) -> list[float]:
        return [number for name in want["after"] for number in params[name]]

    way = distance(flat(want["before"]), flat(want["after"]))
    return {"metrics": worst, "params": distance(flat(got["after"]), flat(want["after"])) / way}


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the Euclidean distance; infinite where either holds a NaN."""
    d = math.dist(a, b)
    return math.inf if math.isnan(d) else d


CONTESTANTS: dict[str, Callable[[nn.Module], Contestant]] = {
    "purestep": partial(purestep, compiled=True),
    "purestep, packed": partial(purestep, compiled=True, packed=True),
    "by hand, pure": partial(by_hand_pure, compiled=True),
    "by hand, mutable": by_hand_mutable,
    "purestep, uncompiled": partial(purestep, compiled=False),
    "purestep, packed, uncompiled": partial(purestep, compiled=False, packed=True),
    "by hand, pure, uncompiled": partial(by_hand_pure, compiled=False),
}
