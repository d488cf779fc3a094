"""What type checkers see of training and evaluation."""

from collections.abc import Iterator
from typing import Any, reveal_type

import mlx.core as mx

import purestep as ps


def loss_fn(params: ps.types.Params, batch: dict[str, mx.array], rng: mx.array) -> ps.Mean:
    return ps.Mean.of(mx.square(params["w"] - batch["x"]))


def with_metrics(
    params: dict[str, mx.array], batch: dict[str, mx.array], rng: mx.array | None
) -> tuple[mx.array, dict[str, mx.array | ps.Mean]]:
    loss = mx.square(params["w"] - batch["x"]).mean()
    return loss, {"weight": params["w"]}


def stateful(
    params: ps.types.Params, model_state: ps.types.Tree, batch: ps.types.Batch, rng: mx.array
) -> tuple[ps.Mean | ps.MeanSum, ps.types.Metrics, ps.types.Tree]:
    return ps.Mean.of(batch["x"]), {}, model_state


def train(batches: Iterator[dict[str, mx.array]]) -> None:
    transform = ps.optimizers.adamw(1e-3)
    state = ps.TrainState.create({"w": mx.array(0.0)}, transform, seed=0)
    reveal_type(state)  # -> TrainState
    reveal_type(state.replace(step=mx.array(0)))  # -> TrainState
    reveal_type(state.step)  # -> array

    step = ps.train_step(loss_fn, transform, microbatches=2)
    reveal_type(step)  # -> Step
    reveal_type(step(state, next(batches)))  # -> tuple[TrainState, dict[str, array]]
    state, metrics = step(state, next(batches))
    reveal_type(metrics["loss"])  # -> array

    parts = step.parts(state, next(batches))
    reveal_type(parts)  # -> Parts
    reveal_type(parts.state)  # -> TrainState
    reveal_type(parts.metrics)  # -> dict[str, array]

    compiled = ps.compiled(step, max_traces=3)
    reveal_type(compiled(state, next(batches)))  # -> tuple[TrainState, dict[str, array]]
    reveal_type(compiled.traces)  # -> int
    ps.compiled(step)(state)  # error: an argument is missing
    ps.train_step(3, transform)  # error: not a function
    ps.train_step(lambda params: params["w"], transform)  # error: a function of other arguments


def other_steps() -> None:
    transform = ps.optimizers.sgd(0.1)
    scaled = ps.transforms.dynamic_loss_scale(transform)
    reveal_type(ps.train_step(with_metrics, transform))  # -> Step
    reveal_type(ps.train_step(stateful, transform, stateful=True))  # -> Step
    reveal_type(ps.train_step(lambda params, batch, rng: params["w"] * batch["x"], transform))  # -> Step
    reveal_type(ps.sam_step(loss_fn, transform, rho=0.1))  # -> Step
    reveal_type(ps.loss_scaled_step(loss_fn, scaled))  # -> Step
    reveal_type(ps.cached_contrastive_step(encode, contrast, transform, microbatches=2))  # -> Step


def populations() -> None:
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(loss_fn, transform)
    states = ps.populations.create(
        lambda seed: ps.TrainState.create({"w": mx.array(0.0)}, transform, seed=seed), range(3)
    )
    reveal_type(states)  # -> TrainState
    reveal_type(ps.population(step))  # -> Step
    reveal_type(ps.population(ps.compiled(step), chunk=2))  # -> Step
    reveal_type(ps.population(ps.eval_step(loss_fn))(states, {})["loss"])  # -> Mean | MeanSum
    reveal_type(ps.populations.members(states))  # -> list[TrainState]
    reveal_type(ps.populations.select(states, [0]))  # -> TrainState
    reveal_type(ps.unrolled(step, 3)(states, {})[1]["loss"])  # -> array


def encode(params: ps.types.Params, batch: dict[str, mx.array], rng: mx.array) -> dict[str, mx.array]:
    return {"queries": batch["a"] @ params["w"], "keys": batch["b"]}


def contrast(params: ps.types.Params, found: dict[str, mx.array], batch: dict[str, mx.array]) -> ps.Mean:
    return ps.losses.info_nce(found["queries"], found["keys"], temperature=1.0)


def evaluate(state: ps.TrainState, batches: list[dict[str, mx.array]]) -> None:
    eval_step = ps.eval_step(with_metrics)
    means = eval_step(state, batches[0])
    reveal_type(means["loss"])  # -> Mean | MeanSum
    reveal_type(means["loss"].value)  # -> array
    compiled = ps.compiled(eval_step)
    reveal_type(compiled(state, batches[0])["loss"])  # -> Mean | MeanSum
    reveal_type(ps.evaluate(compiled, state, batches))  # -> dict[str, float]
    reveal_type(ps.eval_params(state))  # -> Any


def a_step_of_ones_own(state: dict[str, mx.array], batch: mx.array) -> tuple[dict[str, mx.array], mx.array]:
    return state, batch.sum()


def keeps_the_signature(state: dict[str, mx.array], batch: mx.array) -> None:
    compiled = ps.compiled(a_step_of_ones_own)
    reveal_type(compiled(state, batch))  # -> tuple[dict[str, array], array]
    reveal_type(compiled(state=state, batch=batch))  # -> tuple[dict[str, array], array]
    compiled(batch, state)  # error: swapped


def parts(state: ps.TrainState, batch: Any) -> ps.Parts:
    return ps.Parts(state, {}, {}, {})


reveal_type(ps.Step(parts))  # -> Step
