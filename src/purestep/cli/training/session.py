"""One run of `train`: from settings to a trained state."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.disk import atomic
from purestep._core import checks
from purestep._loop.config import files, kinds
from purestep._loop.config.building import computed_in, create_optimizer, create_step
from purestep._loop.fitting.evaluation import Evaluation
from purestep._loop.fitting.fit import fit
from purestep._loop.fitting.result import FitResult
from purestep.cli.training import corpus, facts, models
from purestep.cli.training.corpus import Corpus
from purestep.cli.training.models import Model
from purestep.cli.training.settings import (
    CALLER,
    SIZES,
    STORED,
    Settings,
    all_types,
    refuse_other_settings,
    settings_from,
)

CHECKPOINTS = "checkpoints"


class Session(NamedTuple):
    """A run that is about to train.

    Attributes:
        settings: all settings.
        directory: of its files.
        data: the sources.
        model: the loss and the first parameters.
        notes: sentences on the data, and on settings that a resumed run changes.
    """

    settings: Settings
    directory: Path
    data: Corpus
    model: Model
    notes: list[str]


class Outcome(NamedTuple):
    """A run that ended.

    Attributes:
        result: of `fit`.
        sample: the last one, or `None`.
        tokens: the number of tokens that were seen, padding included.
    """

    result: FitResult
    sample: str | None
    tokens: int


def opened(values: dict[str, Any], *, resume: bool) -> Session:
    """Check all settings and files, and prepare the directory of the run.

    Raises:
        ValueError, TypeError: for a wrong setting or file, or a directory with another run.
        OSError: if a file cannot be read or written.
    """
    if resume:
        return _resumed(values)
    settings = settings_from(values)
    directory = Path(settings.task.out)
    if (directory / STORED).exists():
        raise checks.error(
            CALLER, f"--out {directory} already holds a run: add --resume, or choose another directory"
        )
    models.check_model(settings.task.model, settings.sizes)
    found = corpus.inspected(settings.task)
    top = directory
    while not top.parent.exists():
        top = top.parent
    there = top.exists()
    before = {*directory.glob("*")}
    try:
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            session = _session(settings, directory, found, [], again=False)
            facts.write_facts(directory, found.facts)
            store(session)
    except BaseException:
        if not there:  # a run that never began leaves nothing
            shutil.rmtree(top, ignore_errors=True)
        for path in {*directory.glob("*")} - before:
            path.unlink(missing_ok=True)
        raise
    return session


def _resumed(values: dict[str, Any]) -> Session:
    directory = Path(values.get("out", "runs/train"))
    if not (directory / STORED).is_file():
        raise checks.error(CALLER, f"--resume found no run in {directory}: there is no {STORED}")
    stored = files.read_toml(CALLER, directory / STORED)
    kinds.refuse_unknown(f"{CALLER}: {directory / STORED}", "setting", stored, [*all_types(), SIZES])
    begun = settings_from({**stored, "out": str(directory)})
    sizes = {**begun.sizes, **values.get(SIZES, {})}
    settings = settings_from({**begun.to_dict(), **values, SIZES: sizes})
    notes = refuse_other_settings(begun, settings)
    newest = ps.checkpoint.Checkpointer(directory / CHECKPOINTS).latest()
    if newest is not None and newest.step > settings.config.max_steps:
        rule = f"max_steps must be at least {newest.step}, the steps that the run in {directory} has made"
        raise checks.error(CALLER, f"{rule}, got {settings.config.max_steps}")
    if newest is not None and newest.step == settings.config.max_steps:
        notes.append(f"the run has made all its {newest.step} steps; a larger --max-steps continues it")
    models.check_model(settings.task.model, settings.sizes)
    found = corpus.inspected(settings.task)
    facts.check_same_data(facts.read_facts(directory), found.facts)
    with _writing(directory):
        session = _session(settings, directory, found, notes, again=True)
        store(session)
    return session


def _session(
    settings: Settings, directory: Path, found: corpus.Inspected, notes: list[str], *, again: bool
) -> Session:
    config, task = settings.config, settings.task
    data = corpus.prepared(task, found, directory, config.batch_size, config.seed, again=again)
    about = models.Data(data.vocabulary, task.context, settings.sizes, task.remat)
    model = models.build(task.model, config, about)
    session = Session(settings, directory, data, model, [*notes, *data.notes])
    prompt(session)
    return session


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Name the directory in an error of writing to it, which may name a temporary file, or none."""
    try:
        yield
    except OSError as error:
        place = None if error.filename is None else os.fsdecode(error.filename)
        if place is None or os.path.abspath(place).startswith(os.path.abspath(directory)):
            said = error.strerror or error
            raise checks.error(CALLER, f"--out {directory} cannot be written: {said}") from error
        raise


def store(session: Session) -> None:
    """Write the settings into the directory of the run."""
    atomic.write_text(session.directory / STORED, files.toml(session.settings.to_dict()))


def prompt(session: Session) -> list[int]:
    """Return the tokens before a sample."""
    text, data = session.settings.task.prompt, session.data
    if text is None:
        return data.prompt
    if data.encode is None:
        raise checks.error(
            CALLER, f"prompt needs a tokenizer: a token file has none of its own, got {text!r}"
        )
    try:
        tokens = data.encode(text)
    except ValueError as error:
        said = str(error).removeprefix("Characters.encode: text ")
        raise checks.error(CALLER, f"prompt {said}") from None
    if not tokens or max(tokens) >= data.vocabulary:
        raise checks.error(CALLER, f"prompt must have at least one token of the vocabulary, got {text!r}")
    return tokens


def sample(session: Session, state: Any) -> str:
    """Return the prompt and the text that the model writes after it."""
    task, apply = session.settings.task, session.model.apply
    assert apply is not None
    tokens = prompt(session)
    params = ps.eval_params(state.opt_state, state.params)
    drawn = models.continued(
        apply, params, tokens,
        count=task.sample_tokens, context=task.context, temperature=task.temperature,
        seed=session.settings.config.seed, end=session.data.end,
    )  # fmt: skip
    return session.data.decode([*tokens, *drawn])


def trained(session: Session, callbacks: Sequence[Any]) -> Outcome:
    """Train from the newest checkpoint to the last step.

    Raises:
        Exception: what the model of a user raises; the state is saved.
        OSError: if a file cannot be written.
        ValueError: if the run cannot be resumed.
    """
    config, task, _ = session.settings
    transform = create_optimizer(config, hidden=session.model.hidden)
    step = create_step(config, session.model.loss_fn, transform, reference=session.model.params)
    measure: Any = ps.eval_step(computed_in(config, session.model.loss_fn))
    if config.compile_step:
        measure = ps.compiled(measure)
    most = len(session.data.validation)
    evaluations = [
        Evaluation(
            measure,
            session.data.validation,
            every=config.eval_interval,
            batches=min(most, task.validation_batches or most),
        )
    ]
    samples: list[str] = []
    tokens = [0]

    def written(state: Any) -> str:
        samples[:] = [sample(session, state)]
        return samples[0]

    def count(progress: Any) -> None:
        tokens[0] = progress.tokens

    if task.sample_tokens and session.model.apply is not None:
        evaluations.append(Evaluation(written, every=task.sample_interval, name="sample"))
    policies = (
        ps.checkpoint.save_every_steps(config.checkpoint_interval),
        ps.checkpoint.save_on_best("eval_loss"),
    )
    checkpointer = ps.checkpoint.Checkpointer(
        session.directory / CHECKPOINTS,
        keep=ps.checkpoint.keep_last(task.keep),
        save_when=ps.checkpoint.save_any(*policies),
        metric="eval_loss",
    )
    with checkpointer:
        result = fit(
            step,
            ps.TrainState.create(session.model.params, transform, seed=config.seed),  # nothing else keeps it
            session.data.train,
            steps=config.max_steps,
            evaluate=evaluations,
            checkpointer=checkpointer,
            callbacks=[*callbacks, count],
            log_every=config.log_interval,
            metadata={"settings": session.settings.to_dict()},
        )
    return Outcome(result, samples[0] if samples else None, tokens[0])


def figures(session: Session, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of a run by name."""
    result, best = outcome.result, outcome.result.best
    return {
        "loss": result.history.last("loss"),
        "validation_loss": result.history.last("eval_loss"),
        "best_validation_loss": None if best is None else best.value,
        "best_step": None if best is None else best.step,
        "steps": result.steps,
        "reason": result.reason,
        "parameters": ps.tree.size(session.model.params),
        "tokens_per_second": round(outcome.tokens / result.seconds) if outcome.tokens else None,
        "seconds": round(result.seconds, 1),
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
        "out": os.fspath(session.directory),
    }
