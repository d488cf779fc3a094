"""The memory of a run of `train`, and what would make it smaller."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._loop.config.building import create_optimizer, create_step
from purestep.cli.training import corpus, models
from purestep.cli.training.settings import Settings, settings_from

_BLOCKS = "blocks.*"  # of the named model


class Plan(NamedTuple):
    """A run, and its memory.

    Attributes:
        change: what differs from the settings that were given; empty for those.
        report: the memory.
    """

    change: dict[str, Any]
    report: ps.memory.MemoryReport


def planned(values: dict[str, Any], vocabulary: int | None = None) -> ps.memory.MemoryReport:
    """Return the memory of the settings of a command line; nothing is allocated for a named model.

    Raises:
        ValueError, TypeError: for a wrong setting or file.
        OSError: if the data cannot be read.
    """
    settings = settings_from(values)
    models.check_model(settings.task.model, settings.sizes)
    return _report(settings, corpus.vocabulary(settings.task) if vocabulary is None else vocabulary)


def _report(settings: Settings, vocabulary: int) -> ps.memory.MemoryReport:
    config, task, sizes = settings
    data = models.Data(vocabulary, task.context, sizes, task.remat)
    model = models.build(task.model, config, data, evaluate=False)
    transform = create_optimizer(config, hidden=model.hidden)
    state = ps.TrainState.create(model.params, transform, seed=config.seed)
    shape = config.batch_size, task.context
    batch = {"inputs": mx.zeros(shape, mx.int32), "targets": mx.zeros(shape, mx.int32)}
    report = ps.memory.predict(create_step(config, model.loss_fn, transform), state, batch)
    # The run keeps the first parameters.
    return report._replace(peak_in_run=report.peak_in_run + report.parameters)


def smaller(values: dict[str, Any], budget: int) -> Iterator[Plan]:
    """Yield changes of the settings that need less memory, each with those before it, until one fits.

    A change that does not help is left out.
    """
    settings = settings_from(values)
    vocabulary = corpus.vocabulary(settings.task)
    changed: dict[str, Any] = {}
    least = planned(values, vocabulary).peak_in_run
    for change in _changes(settings):
        report = planned({**values, **changed, **change}, vocabulary)
        if report.peak_in_run >= least:
            continue
        changed, least = {**changed, **change}, report.peak_in_run
        yield Plan(changed, report)
        if least <= budget:
            return


def _changes(settings: Settings) -> Iterator[dict[str, Any]]:
    config, task, _ = settings
    if ":" not in task.model and task.remat is None:
        yield {"remat": _BLOCKS}
    if config.dtype == "float32":
        yield {"dtype": "bfloat16"}
    batch, windows = config.batch_size, config.grad_accumulation_steps
    while batch > 1 and batch % 2 == 0:
        batch, windows = batch // 2, windows * 2
        yield {"batch_size": batch, "grad_accumulation_steps": windows}
    if config.optimizer in ("adamw", "adam", "nadamw", "ademamix", "lamb"):
        yield {"optimizer": "lion"}
