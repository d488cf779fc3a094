"""Runs of a sweep that train as one population."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.lines import encoded
from purestep._loop.config.building import computed_in, create_optimizer, create_step
from purestep._loop.config.config import TrainConfig
from purestep._loop.fitting.flushing import flushed
from purestep.cli.sweeping.grid import ARRAYS, Planned
from purestep.cli.training.session import Session

METRICS, STATE = "metrics.jsonl", "state.safetensors"


def optimizer(config: TrainConfig, names: Sequence[str], hidden: Any) -> ps.GradientTransform:
    """Return the optimizer of a configuration, with some of its numbers as arrays in the state."""

    def make(
        learning_rate: Any = None, weight_decay: Any = None, max_grad_norm: Any = None
    ) -> ps.GradientTransform:
        given = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        held = copy.copy(config)  # its numbers were checked, and arrays take their places
        for name in names:
            object.__setattr__(held, name, given[name])
        return create_optimizer(held, hidden=hidden)

    return ps.transforms.inject_hyperparams(make)(**{name: getattr(config, name) for name in names})


def trained(
    runs: Sequence[Planned], sessions: Sequence[Session], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train all runs as one population; write the metrics and the last state of each; return its figures."""
    session = sessions[0]
    config, task, _ = session.settings
    names = [name for name in ARRAYS if len({getattr(run.settings.config, name) for run in runs}) > 1]
    transform = optimizer(config, names, session.model.hidden)
    params = session.model.params
    built: Any = create_step(
        config.replace(compile_step=False), session.model.loss_fn, transform, reference=params
    )
    step: Any = ps.population(built)
    measure: Any = ps.population(ps.eval_step(computed_in(config, session.model.loss_fn)))
    if config.compile_step:
        step, measure = ps.compiled(step), ps.compiled(measure)
    values = {name: [getattr(run.settings.config, name) for run in runs] for name in names}
    make = lambda seed: ps.TrainState.create(params, transform, seed=seed)  # noqa: E731
    states = ps.populations.create(make, [config.seed] * len(runs), **values)
    writers = [_Writer(session.directory) for session in sessions]
    most = len(session.data.validation)
    batches = min(most, task.validation_batches or most)
    held: dict[str, list[mx.array]] = {}
    begin = time.perf_counter()
    for number, (now, metrics) in enumerate(
        ps.run(step, states, session.data.train, steps=config.max_steps), 1
    ):
        states = now
        del now
        for name, found in metrics.items():
            held.setdefault(name, []).append(found)
        last = number == config.max_steps
        if last:
            states = flushed(step, states)
        if last or number % config.log_interval == 0:
            seconds = round(time.perf_counter() - begin, 3)
            _write_rows(writers, number, held, seconds)
            held = {}
        if last or number % config.eval_interval == 0:
            means = ps.populations.evaluate(measure, states, session.data.validation, steps=batches)
            seconds = round(time.perf_counter() - begin, 3)
            for writer, found in zip(writers, means, strict=True):
                writer.evaluated(number, {f"eval_{name}": value for name, value in found.items()}, seconds)
            say(f"step {number} of {config.max_steps}, {seconds:.0f} s")
    seconds = time.perf_counter() - begin
    for member, writer in zip(ps.populations.members(states), writers, strict=True):
        # In the structure of a run of its own: the numbers are those of its configuration.
        plain = member.replace(opt_state=member.opt_state.inner_state) if names else member
        ps.checkpoint.save(writer.directory / STATE, plain)
    return [writer.figures(config.max_steps, seconds) for writer in writers]


class _Writer:
    """The rows of one member."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._loss: float | None = None
        self._evaluations: list[tuple[float, int]] = []

    def row(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Add the figures of some steps."""
        self._loss = figures.get("loss", self._loss)
        self._write({"step": step, **figures, "seconds": seconds})

    def evaluated(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Add the figures of an evaluation."""
        self._evaluations.append((figures["eval_loss"], step))
        self._write({"step": step, **figures, "seconds": seconds})

    def _write(self, row: dict[str, Any]) -> None:
        with open(self.directory / METRICS, "a", encoding="utf-8") as file:
            file.write(encoded(row) + "\n")

    def figures(self, steps: int, seconds: float) -> dict[str, Any]:
        """Return the figures of the run by name."""
        finite = [each for each in self._evaluations if each[0] - each[0] == 0.0]
        best = min(finite, default=None)
        last = self._evaluations[-1][0] if self._evaluations else None
        sound = last is not None and last - last == 0.0
        return {
            "loss": self._loss,
            "validation_loss": last,
            "best_validation_loss": None if best is None else best[0],
            "best_step": None if best is None else best[1],
            "steps": steps,
            "reason": "steps" if sound else "a value is not finite",
            "seconds": round(seconds, 1),
            "out": str(self.directory),
        }


def _write_rows(
    writers: Sequence[_Writer], number: int, held: dict[str, list[mx.array]], seconds: float
) -> None:
    """Write the mean of each metric, and the last learning rate, of every member."""
    means: dict[str, Any] = {}
    for name, found in held.items():
        rows = found[-1:] if name == "learning_rate" else found
        means[name] = mx.stack(rows).astype(mx.float32).mean(axis=0).tolist()
    for index, writer in enumerate(writers):
        writer.row(number, {name: values[index] for name, values in means.items()}, seconds)
