"""Where a run begins: anew, or at the newest checkpoint."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from purestep._checkpoint.run.manager import Checkpointer
from purestep._core import checks
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger
from purestep._loop.running.cursor import checksum, is_on_policy

KEY = "purestep.fit"  # of a checkpoint's metadata


class Begun(NamedTuple):
    """The beginning of a run: its state, and what the checkpoint says if it is resumed."""

    state: Any
    stored: Mapping[str, Any] | None = None
    step: int = 0


def restored(caller: str, checkpointer: Checkpointer | None, state: Any, *, resume: bool) -> Begun:
    """Return the newest checkpoint, or the state itself if there is none."""
    if checkpointer is None:
        return Begun(state)
    if not resume:
        newest = checkpointer.latest()
        if newest is not None:
            raise checks.error(
                caller,
                f"checkpointer must use an empty directory without resume=True, got {checkpointer.path} with "
                f"step {newest.step}",
            )
        return Begun(state)
    try:
        found, record = checkpointer.restore(like=state)
    except FileNotFoundError:
        return Begun(state)
    return Begun(found, record.metadata.get(KEY, {}), record.step)


def fingerprint(source: Any) -> int | None:
    """Return a checksum of the first batch of an `at(step)` source, or `None` for other sources."""
    if not hasattr(source, "at") or is_on_policy(source):
        return None
    return checksum(source.at(0))


def take_up(caller: str, begun: Begun, ledger: Ledger, hooks: Hooks, source: Any, *, same_data: bool) -> None:
    """Continue the counts, the history and the callbacks of a stored run; refuse other data."""
    stored = begun.stored
    if stored is None:
        return
    if not stored:  # The checkpoint was saved by another loop.
        ledger.step = begun.step
        ledger.position = {"epoch": 0, "batch": begun.step, "first": None}
        return
    ledger.restore(stored["ledger"])
    hooks.restore(stored["callbacks"])
    if not same_data:
        return
    known, now = stored["source"], fingerprint(source)
    if known is not None and now is not None and known != now:
        raise checks.error(
            caller,
            "source must give the batches of the run that is resumed: the batch of step 0 differs from that "
            f"of the run, which is at step {ledger.step}. Pass the same data, seed and batch size, or "
            "same_data=False",
        )
