"""Runs of a sweep that train as one population."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.run.signals import Signals
from purestep._loop.callbacks.lines import belongs, encoded
from purestep._loop.callbacks.output import append_line, begin_file
from purestep._loop.config.building import computed_in, create_optimizer, create_step
from purestep._loop.config.config import TrainConfig
from purestep._loop.fitting.flushing import flushed
from purestep.cli.sweeping import stored
from purestep.cli.sweeping.grid import ARRAYS, Planned
from purestep.cli.sweeping.stored import METRICS, STATE
from purestep.cli.training.session import Session


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


class Begun(NamedTuple):
    """A population that trains.

    Attributes:
        states: the states of all members.
        step: the steps made.
        held: the metrics of the steps since the last row: a list of [members] by name.
        seconds: of training, in earlier parts of the sweep.
    """

    states: Any
    step: int
    held: dict[str, list[mx.array]]
    seconds: float


def trained(
    runs: Sequence[Planned],
    sessions: Sequence[Session],
    checkpoints: Path,
    asked: Signals,
    say: Callable[[str], None],
) -> list[dict[str, Any]] | None:
    """Train all runs as one population; write the metrics and the last state of each.

    Continues from the newest checkpoint.

    Args:
        runs: the runs, which differ in numbers of the optimizer alone.
        sessions: theirs, in the same order.
        checkpoints: the directory of the checkpoints of the population.
        asked: a signal to stop, which is obeyed after a step.
        say: shows a line.

    Returns:
        The figures of each run; `None` if a signal came before the last step was made.
    """
    session = sessions[0]
    config, task, _ = session.settings
    names = [name for name in ARRAYS if len({getattr(run.settings.config, name) for run in runs}) > 1]
    transform = optimizer(config, names, session.model.hidden)
    step, measure = _steps(session, transform)
    values = {name: [getattr(run.settings.config, name) for run in runs] for name in names}
    make = lambda seed: ps.TrainState.create(session.model.params, transform, seed=seed)  # noqa: E731
    states = ps.populations.create(make, [config.seed] * len(runs), **values)
    most = len(session.data.validation)
    batches = min(most, task.validation_batches or most)
    with ps.checkpoint.Checkpointer(checkpoints, keep=ps.checkpoint.keep_last(1)) as checkpointer:
        begun = _begun(checkpointer, states)
        states, _, held, earlier = begun
        writers = [Writer(each.directory, begun.step) for each in sessions]
        begin = time.perf_counter() - earlier
        made = ps.run(step, states, session.data.train, steps=config.max_steps)
        for number, (now, metrics) in enumerate(made, begun.step + 1):
            states = now
            del now
            for name, found in metrics.items():
                held.setdefault(name, []).append(found)
            last = number == config.max_steps
            if last:
                states = flushed(step, states)
            if last or number % config.log_interval == 0:
                _write_rows(writers, number, held, _since(begin))
                held = {}
            if last or number % config.eval_interval == 0:
                means = ps.populations.evaluate(measure, states, session.data.validation, steps=batches)
                seconds = _since(begin)
                for writer, found in zip(writers, means, strict=True):
                    figures = {f"eval_{name}": value for name, value in found.items()}
                    writer.row(number, figures, seconds)
                say(f"step {number} of {config.max_steps}, {seconds:.0f} s")
            if asked.received or last or number % config.checkpoint_interval == 0:
                plain = {name: [each.tolist() for each in found] for name, found in held.items()}
                about = {"held": _sound(plain), "seconds": _since(begin)}
                checkpointer.save(states, step=number, metadata=about)
            if asked.received and not last:
                return None
    for member, each in zip(ps.populations.members(states), sessions, strict=True):
        # In the structure of a run of its own: the numbers are those of its configuration.
        plain = member.replace(opt_state=member.opt_state.inner_state) if names else member
        ps.checkpoint.save(each.directory / STATE, plain)
    return [writer.figures(config.max_steps) for writer in writers]


def _steps(session: Session, transform: ps.GradientTransform) -> tuple[Any, Any]:
    """Return the step and the measurement of all members."""
    config, model = session.settings.config, session.model
    step: Any = create_step(
        config.replace(compile_step=False), model.loss_fn, transform, reference=model.params
    )
    step, measure = (ps.population(each) for each in (step, ps.eval_step(computed_in(config, model.loss_fn))))
    return (ps.compiled(step), ps.compiled(measure)) if config.compile_step else (step, measure)


def _begun(checkpointer: ps.checkpoint.Checkpointer, states: Any) -> Begun:
    """Return the newest checkpoint, or the beginning."""
    if checkpointer.latest() is None:
        return Begun(states, 0, {}, 0.0)
    states, record = checkpointer.restore(like=states)
    held = {
        name: [mx.array([float(value) for value in each]) for each in found]
        for name, found in record.metadata["held"].items()
    }
    return Begun(states, record.step, held, record.metadata["seconds"])


def _sound(value: Any) -> Any:
    """Return lists of numbers in which those that are not finite are texts, as JSON needs them."""
    if isinstance(value, dict):
        return {name: _sound(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_sound(child) for child in value]
    return value if math.isfinite(value) else repr(value)


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)


class Writer:
    """The rows of one member, in a file."""

    def __init__(self, directory: Path, start: int):
        self._directory = directory
        begin_file(directory / METRICS, start, partial(belongs, step=start))

    def row(self, step: int, figures: dict[str, float], seconds: float) -> None:
        """Add the figures of some steps, or of an evaluation."""
        append_line(self._directory / METRICS, encoded({"step": step, **figures, "seconds": seconds}))

    def figures(self, steps: int) -> dict[str, Any]:
        """Return the figures of the run by name."""
        rows = stored.rows(self._directory / METRICS)
        losses = [row["loss"] for row in rows if "loss" in row]
        evaluations = [(row["eval_loss"], row["step"]) for row in rows if "eval_loss" in row]
        best = min((each for each in evaluations if each[0] is not None), default=None)
        last = evaluations[-1][0] if evaluations else None
        return {
            "loss": _number(losses[-1]) if losses else None,
            "validation_loss": _number(last) if evaluations else None,
            "best_validation_loss": None if best is None else best[0],
            "best_step": None if best is None else best[1],
            "steps": steps,
            "reason": "a value is not finite" if last is None else "steps",
            "seconds": round(rows[-1]["seconds"], 1) if rows else 0.0,
            "out": str(self._directory),
        }


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # a file of JSON lines has null for NaN


def _write_rows(
    writers: Sequence[Writer], number: int, held: dict[str, list[mx.array]], seconds: float
) -> None:
    """Write the mean of each metric, and the last learning rate, of every member."""
    means: dict[str, Any] = {}
    for name, found in held.items():
        rows = found[-1:] if name == "learning_rate" else found
        means[name] = mx.stack([each.astype(mx.float32) for each in rows]).mean(axis=0).tolist()
    for index, writer in enumerate(writers):
        writer.row(number, {name: values[index] for name, values in means.items()}, seconds)
