"""How a run ends: its reason, its best evaluation, and what is done after an error."""

from typing import Any

from purestep._checkpoint.run.manager import Checkpointer
from purestep._loop.core.ranks import Ranks
from purestep._loop.fitting.evaluation import Evaluation
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger
from purestep._loop.fitting.session import Session
from purestep._loop.fitting.storage import Storage
from purestep._loop.running.agreeing import AgreedFeed
from purestep._loop.running.cursor import PassCursor
from purestep._loop.running.feeding import Feed
from purestep._loop.running.run import Span


def reason_of(feed: Feed, cursor: Any, span: Span, steps: int | None, ledger: Ledger) -> str:
    """Return the reason of a run that read its source to the end."""
    if isinstance(feed, AgreedFeed) and feed.ended is not None:
        return feed.ended
    if span.steps is not None and ledger.step >= span.steps:
        return "steps" if steps is not None else "epochs"
    if isinstance(cursor, PassCursor) and cursor.complete and span.steps is None:
        return "epochs"
    return f"the source ended after {ledger.step} steps"


def report(
    error: BaseException, session: Session, storage: Storage, result: Any, hooks: Hooks, ranks: Ranks
) -> None:
    """Save the last state, tell the callbacks, and add to the error where the state is.

    A second signal, which is no `Exception`, stops at once: nothing is saved. Nor is anything saved if a rank
    is gone, because all ranks save together.
    """
    if isinstance(error, Exception) and not ranks.lost:
        try:
            storage.finish(session.progress)
        except Exception as failure:
            error.add_note(f"and a checkpoint failed: {failure}")
    made = result(f"error: {str(error) or type(error).__name__}")
    error.result = made  # type: ignore[attr-defined]
    error.add_note(f"fit ended after step {made.steps}; {storage.where()}")
    try:
        hooks.train_end(made)
    except Exception as failure:
        error.add_note(f"and a callback failed in on_train_end: {failure}")


def rated(
    checkpointer: Checkpointer | None, evaluations: tuple[Evaluation, ...], ledger: Ledger
) -> tuple[str | None, str]:
    """Return the figure that decides what is best, and its mode."""
    if checkpointer is not None and checkpointer.metric is not None:
        return checkpointer.metric, checkpointer.mode
    losses = [f"{evaluation.name}_loss" for evaluation in evaluations]
    return next((name for name in losses if name in ledger.history.names), None), "min"
