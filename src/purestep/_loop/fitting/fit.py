"""`fit`: a training run with evaluation, checkpoints, callbacks and resuming."""

import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import mlx.core as mx

from purestep._checkpoint.run.arguments import plain_values
from purestep._checkpoint.run.manager import Checkpointer
from purestep._checkpoint.run.signals import Signals, signals, watching
from purestep._core import checks, tree
from purestep._core.types import Batch, OnPolicySource, Source, StepFn
from purestep._data.core.ranks import whole_of
from purestep._loop.core.progress import Run
from purestep._loop.core.ranks import Ranks, ranks_of
from purestep._loop.fitting.alike import check_alike, check_state
from purestep._loop.fitting.ending import rated, reason_of, report
from purestep._loop.fitting.evaluation import Evaluation, evaluations_of
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger, sizes
from purestep._loop.fitting.result import FitResult, best_in
from purestep._loop.fitting.resuming import KEY, check_options, fingerprint, restored, take_up
from purestep._loop.fitting.session import SIGNAL, Session, first_reason
from purestep._loop.fitting.storage import Storage
from purestep._loop.profiling.clock import Off, take
from purestep._loop.running.agreeing import feed_of, warn_alone
from purestep._loop.running.cursor import check_source, cursor_for
from purestep._loop.running.feeding import Feed
from purestep._loop.running.run import calls_before, needs_no_thread, pipelined, span_of, steps_a_call


def fit(
    step: StepFn,
    state: Any,
    source: Source | OnPolicySource | Iterable[Batch],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    evaluate: Evaluation | Iterable[Evaluation] | None = None,
    checkpointer: Checkpointer | None = None,
    save_every: int | None = None,
    callbacks: Iterable[Any] = (),
    log_every: int = 10,
    resume: bool = True,
    same_data: bool = True,
    stop_on_nonfinite: bool = True,
    metadata: Mapping[str, Any] | None = None,
    prefetch: int = 2,
    group: mx.distributed.Group | None = None,
) -> FitResult:
    """Train: make steps, log, evaluate, save checkpoints, resume, and stop for a reason.

    After each step, in this order: the row of figures, if one is due; `on_step_end` of the callbacks; the
    evaluations that are due, and `on_eval_end`; the checkpoint, if one is due, and `on_checkpoint`. The
    device works on the next step meanwhile, as in `run`.

    The first Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint. It also ends an
    evaluation and the wait for a slow source; the resumed run makes the evaluations that are missing. A
    second signal stops at once. If a step, the source, an evaluation or a callback raises, the state after
    the last step is saved, and the error is raised with the attribute `result`, a `FitResult`. A checkpoint
    that cannot be saved, on a full disk for example, gives a `CheckpointWarning`, and training goes on.

    A resumed run equals an uninterrupted one bit for bit: state, data, history, callbacks. It continues in
    the middle of an epoch. An iterable is read again up to its position, unless it has `get_state()` and
    `set_state(plain)`; `at(step)` needs nothing. If the data differs, the run is refused.

    All evaluations are made after the last step too. If the run reaches `steps`, `epochs` or the end of the
    source, the incomplete window of `accumulate` is applied. A run that ends by a signal or a `Stop` can be
    continued, so its window stays open.

    Processes that train together, with a step from `ps.data_parallel` or `ps.sharded`, each call `fit` with
    the same arguments and with a source of their own rows, from `data.for_rank`. Callbacks are called on rank
    0, which also writes checkpoints. A signal, a `Stop` or the end of the source on one rank ends the run on
    all of them after the same step, and so does an error, which the others raise too, with the name of the
    rank. If a rank dies, the others raise an error or end with status 75. All ranks return the same result.

    Args:
        step: `step(state, batch) -> (state, metrics)`. A call of a step of `scan` counts as one step here;
            rows are means over all steps of all calls.
        state: the state before the first step; the template of the checkpoint if the run is resumed.
        source: as for `run`.
        steps: the number of steps at the end, those before included.
        epochs: passes over the data, in place of `steps`. Without both, an iterable is read once.
        evaluate: one `Evaluation` or several.
        checkpointer: saves when its `save_when` says so. Without `save_when` it saves after evaluations and
            every `save_every` steps. The last state is always saved. `fit` does not close it.
        save_every: steps between checkpoints, in addition.
        callbacks: `Callback`s and plain functions `f(progress) -> Stop | Save | None`.
        log_every: steps between rows of figures. Metrics are read from the device at least every 32 steps.
        resume: continue from the newest checkpoint, if there is one. With `False` a directory that holds
            checkpoints is refused.
        same_data: refuse to resume with other data: the first batch is compared by checksum.
        stop_on_nonfinite: stop if a metric and the parameters are not finite; checked at every row and
            checkpoint. Such a state is never saved, so the checkpoints before it are kept. A population is
            finite while the parameters of one member are.
        metadata: plain JSON values to store with each checkpoint, such as the configuration.
        prefetch: as for `run`.
        group: the processes that train together; `None` for those of a step from `ps.data_parallel` or
            `ps.sharded`, and for this one alone with another step.

    Returns:
        A `FitResult`: the state, the best evaluation, the history, and the reason why the run ended.

    Raises:
        ValueError: if `steps` is below the steps of the state or the checkpoint; if the source has no batch;
            if the data is not that of the run; if the checkpoint is of another structure.
        LockedError: if another process writes to the checkpointer's directory.
        OSError: if the last checkpoint cannot be saved.
        RuntimeError: if another rank failed or ended; it is named.

    Warns:
        CheckpointWarning: if a checkpoint is not saved.
        TrainsAloneWarning: if the source has the rows of one of several processes, and the step no group.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> data = [{"x": mx.array([2.0])}]
    >>> evaluation = ps.Evaluation(ps.eval_step(loss_fn), data, every=2)
    >>> step = ps.train_step(loss_fn, transform)
    >>> result = fit(step, state, data, steps=3, evaluate=evaluation, log_every=1)
    >>> result.reason, result.steps, result.history.column("loss")
    ('steps', 3, ([1, 2, 3], [4.0, 1.0, 0.25]))
    >>> result.best
    Best(step=3, metric='eval_loss', value=0.0625)
    """
    caller = "fit"
    checks.function(caller, "step", step)
    ranks = ranks_of(caller, step, group)
    try:
        return _fitted(
            ranks, step, state, source, steps, epochs, evaluate, checkpointer, save_every, callbacks,
            log_every, metadata, prefetch,
            resume=resume, same_data=same_data, stop_on_nonfinite=stop_on_nonfinite,
        )  # fmt: skip
    except BaseException as error:
        ranks.failed(error)
        raise
    finally:
        ranks.close()


def _fitted(
    ranks: Ranks,
    step: StepFn,
    state: Any,
    source: Any,
    steps: int | None,
    epochs: int | None,
    evaluate: Any,
    checkpointer: Checkpointer | None,
    save_every: int | None,
    callbacks: Iterable[Any],
    log_every: int,
    metadata: Mapping[str, Any] | None,
    prefetch: int,
    *,
    resume: bool,
    same_data: bool,
    stop_on_nonfinite: bool,
) -> FitResult:
    """Do what `fit` does, together with the other ranks."""
    caller = "fit"
    check_source(caller, source)
    warn_alone(caller, source, ranks)
    check_options(
        caller, checkpointer, ranks, resume=resume, same_data=same_data, stop_on_nonfinite=stop_on_nonfinite
    )
    log_every = checks.integer(caller, "log_every", log_every, least=1)
    prefetch = checks.integer(caller, "prefetch", prefetch, least=0)
    if save_every is not None:
        save_every = checks.integer(caller, "save_every", save_every, least=1)
        if checkpointer is None:
            raise checks.error(caller, "save_every needs a checkpointer")
    metadata = plain_values(caller, "metadata", {} if metadata is None else metadata)
    if KEY in metadata:
        raise checks.error(caller, f"metadata must not have the name {KEY!r}: fit uses it")
    evaluations = evaluations_of(caller, evaluate)
    options = {
        "steps": steps, "epochs": epochs, "checkpointer": checkpointer is not None, "save_every": save_every,
        "log_every": log_every, "resume": resume, "same_data": same_data,
        "stop_on_nonfinite": stop_on_nonfinite,
    }  # fmt: skip
    check_alike(caller, ranks, evaluations, options)
    hooks = Hooks(caller, callbacks, ranks)
    begun = restored(caller, checkpointer, state, ranks, resume=resume)
    ledger = Ledger(caller, log_every, steps_a_call(step))
    ledger.step = calls_before(step, begun.state)
    take_up(caller, begun, ledger, hooks, source, ranks, same_data=same_data)
    check_state(caller, ranks, step, begun.state)
    span = span_of(caller, source, steps, epochs, ledger.step)
    ledger.steps = span.steps
    # Of a source that gives each rank other rows, only rank 0's first batch would be known.
    check = same_data and checkpointer is not None and (ranks.size == 1 or whole_of(source) is not source)
    cursor = cursor_for(caller, source, span.start, span.passes, position=ledger.position, check=check)
    first = fingerprint(source, ranks) if checkpointer is not None else None

    def facts() -> dict[str, Any]:
        own = {"ledger": ledger.to_plain(), "callbacks": hooks.to_plain(), "source": first}
        return {**metadata, KEY: own}

    stored = None if begun.stored is None else begun.step
    storage = Storage(caller, checkpointer, save_every, facts, ranks, step=stored)
    feed = feed_of(
        cursor,
        span,
        0 if needs_no_thread(source) else prefetch,
        ranks,
        partial(sizes, steps=ledger.steps_a_call),
    )
    clock = take()
    in_main = threading.current_thread() is threading.main_thread()
    with signals() if in_main else nullcontext(watching() or Signals()) as asked:
        ranks.asked = asked
        session = Session(
            caller, step, ledger, hooks, evaluations, storage, ranks,
            structure=None if checkpointer is None else tree.spec(begun.state),
            stop_on_nonfinite=stop_on_nonfinite, clock=clock,
        )  # fmt: skip
        initial = [begun.state]  # emptied after the first step, so that nothing keeps the state in memory
        run = Run(
            step,
            initial[0],
            span.start,
            span.steps,
            ledger.history,
            log_every,
            tuple(e.name for e in evaluations),
            ranks.rank,
            ranks.size,
        )
        del begun, state

        def result(reason: str) -> FitResult:
            now = initial[0] if session.progress is None else session.progress.state
            best = best_in(ledger.history, *rated(checkpointer, evaluations, ledger))
            return FitResult(now, best, ledger.history, reason, ledger.step, ledger.seconds)

        try:
            reason = first_reason(hooks.train_begin(run))
            del run
            if checkpointer is not None:
                plain_values(caller, "state() of callbacks", hooks.to_plain())
            if reason is None:
                reason = session.catch_up(initial[0]) or _trained(
                    caller, step, initial, feed, session, span.start, clock
                )
            if reason is None:
                reason = reason_of(feed, cursor, span, steps, ledger)
            storage.finish(session.progress)
        except BaseException as error:
            ranks.failed(error)
            report(error, session, storage, result, hooks, ranks)
            raise
        done = result(reason)
        try:
            hooks.train_end(done, together=True)
        except Exception as error:
            error.result = done  # type: ignore[attr-defined]
            error.add_note(f"fit ended after step {done.steps}: {reason}; {storage.where()}")
            raise
    return done


def _trained(
    caller: str, step: StepFn, initial: list[Any], feed: Feed, session: Session, start: int, clock: Off
) -> str | None:
    """Make all steps; return the reason if the run is stopped before its end."""
    last = False
    for made in pipelined(caller, step, initial[0], feed, session.interrupted, start=start, clock=clock):
        last = made.last
        reason = session.after(made)
        initial.clear()
        del made
        if reason is not None:
            return reason
    return SIGNAL if session.interrupted() and not last else None
