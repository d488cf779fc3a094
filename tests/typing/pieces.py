"""What type checkers see of modules, transforms, losses, schedules and trees."""

from typing import NamedTuple, reveal_type

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


def modules(module: nn.Module, x: mx.array, key: mx.array) -> None:
    apply, params, model_state = ps.functional(module, discard="*._mask")
    reveal_type(apply)  # -> Apply
    reveal_type(params)  # -> dict[str, Any]
    reveal_type(model_state)  # -> dict[str, Any]
    reveal_type(apply(params, x, rng=key))  # -> Any
    reveal_type(apply(params, x, model_state=model_state))  # -> tuple[Any, dict[str, Any]]
    ps.write_back(module, params, model_state)
    apply(params, x, rng=3)  # error: not a key


class Momentum(NamedTuple):
    """The state of a transform of a user's own."""

    steps: mx.array
    mean: ps.types.Params


def momentum(decay: float) -> ps.GradientTransform:
    """Return a user's own transform."""

    def init(params: ps.types.Params) -> Momentum:
        return Momentum(mx.array(0), ps.tree.zeros_like(params))

    def update(
        updates: ps.types.Updates,
        state: Momentum,
        params: ps.types.Params | None = None,
        *,
        value: mx.array | None = None,
    ) -> tuple[ps.types.Updates, Momentum]:
        mean = ps.tree.map(lambda m, u: decay * m + u, state.mean, updates)
        return mean, Momentum(state.steps + 1, mean)

    return ps.GradientTransform(init, update)


def schedule(count: mx.array) -> mx.array:
    """Return a user's own schedule."""
    return 1.0 / (count + 1)


def transforms(params: dict[str, mx.array]) -> None:
    transform = ps.chain(momentum(0.9), ps.transforms.scale_by_learning_rate(schedule))
    reveal_type(transform)  # -> GradientTransform
    reveal_type(transform.update(params, transform.init(params)))  # -> tuple[Any, Any]
    reveal_type(ps.optimizers.adam(schedule))  # -> GradientTransform
    reveal_type(ps.optimizers.adam(1e-3))  # -> GradientTransform
    reveal_type(ps.optimizers.adam(mx.array(1e-3)))  # -> GradientTransform
    ps.optimizers.adam("fast")  # error: not a learning rate
    own: ps.types.Schedule = ps.schedules.warmup_cosine_decay(0.0, 1e-3, 10, 100)
    reveal_type(own(mx.array(1)))  # -> array


def losses(logits: mx.array, targets: mx.array) -> None:
    cross_entropy = ps.losses.cross_entropy(logits, targets, ignore_index=-100)
    reveal_type(cross_entropy)  # -> Mean
    reveal_type(cross_entropy.value)  # -> array
    reveal_type(0.5 * cross_entropy)  # -> Mean
    reveal_type(cross_entropy / 2 + 0.01 * cross_entropy)  # -> Mean | MeanSum
    reveal_type(ps.Mean.merge(cross_entropy, cross_entropy))  # -> Mean


def trees(params: dict[str, mx.array]) -> None:
    reveal_type(ps.tree.items(params))  # -> list[tuple[str, Any]]
    reveal_type(ps.tree.norm(params))  # -> array
    reveal_type(ps.tree.spec(params))  # -> ArraySpec | NodeSpec
    reveal_type(ps.tree.spec_items(ps.tree.spec(params)))  # -> list[tuple[str, ArraySpec]]
    reveal_type(ps.tree.to_plain(ps.tree.spec(params)))  # -> list[Any]
