"""What type checkers see of sources, the loop and its configuration."""

from collections.abc import Iterator
from typing import Any, reveal_type

import mlx.core as mx

import purestep as ps


class Numbers:
    """A user's own source."""

    def at(self, number: int) -> dict[str, mx.array]:
        """Return the batch of a step."""
        return {"x": mx.array(float(number))}


class Sampled:
    """A user's own on-policy source."""

    on_policy = True

    def at(self, state: ps.TrainState) -> dict[str, mx.array]:
        """Return the batch of a state."""
        return {"x": state.params["w"]}


class Named:
    """A class whose `at` takes a name: not a source."""

    def at(self, name: str) -> dict[str, mx.array]:
        """Return a batch."""
        return {"x": mx.array(float(len(name)))}


def loss_fn(params: ps.types.Params, batch: dict[str, mx.array], rng: mx.array) -> ps.Mean:
    return ps.Mean.of(mx.square(params["w"] - batch["x"]))


def sources(state: ps.TrainState, step: ps.Step, batches: Iterator[dict[str, mx.array]]) -> None:
    reveal_type(ps.run(step, state, Numbers(), steps=3))  # -> Iterator[tuple[TrainState, dict[str, array]]]
    ps.run(step, state, Sampled())
    ps.run(step, state, batches)
    ps.run(step, state, [next(batches)], epochs=3)
    ps.run(step, state, ps.data.Batches({"x": mx.zeros(8)}, 2))
    ps.run(step, state, ps.data.map([next(batches)], lambda batch: batch))
    ps.run(step, state, 3)  # error: not a source
    ps.run(step, state, Numbers)  # error: a class
    ps.run(step, state, Named())  # error: `at` takes no step
    ps.run(step, state, lambda number: {"x": mx.array(number)})  # error: a function


def fits(state: ps.TrainState, step: ps.Step) -> None:
    evaluation = ps.Evaluation(ps.eval_step(loss_fn), Numbers(), batches=4, every=10)
    result = ps.fit(step, state, Sampled(), steps=3, evaluate=[evaluation])
    reveal_type(result)  # -> FitResult
    reveal_type(result.state)  # -> Any
    reveal_type(result.best)  # -> Best | None
    reveal_type(result.history.column("loss"))  # -> tuple[list[int], list[float]]
    ps.fit(step, state, None)  # error: not a source
    ps.fit(step, state, Numbers(), callbacks=[ps.callbacks.log(), lambda progress: None])
    ps.Evaluation(ps.eval_step(loss_fn), 3)  # error: not a source
    ps.Evaluation(ps.eval_step(loss_fn), Named())  # error: `at` takes no step
    ps.evaluate(ps.eval_step(loss_fn), state, Named(), steps=1)  # error: `at` takes no step
    reveal_type(ps.evaluate(ps.eval_step(loss_fn), state, Numbers(), steps=1))  # -> dict[str, float]


def configured(values: dict[str, Any]) -> None:
    config = ps.TrainConfig(learning_rate=1e-3, optimizer="lion")
    reveal_type(config.replace(seed=1))  # -> TrainConfig
    reveal_type(ps.TrainConfig.from_dict(values))  # -> TrainConfig
    reveal_type(ps.create_schedule(config)(mx.array(0)))  # -> array
    reveal_type(ps.create_optimizer(config))  # -> GradientTransform
    ps.TrainConfig(optimizer="adamx")  # error: not an optimizer
    ps.TrainConfig(learning_rat=1e-3)  # error: not a field
