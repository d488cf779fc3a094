"""Where a run begins: anew, or at the newest checkpoint."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from purestep._checkpoint.disk.lock import LockedError
from purestep._checkpoint.run.manager import Checkpointer
from purestep._core import checks
from purestep._data.core.ranks import whole_of
from purestep._loop.core.ranks import Ranks
from purestep._loop.fitting.hooks import Hooks
from purestep._loop.fitting.ledger import Ledger
from purestep._loop.running.cursor import batches_per_epoch, checksum, is_on_policy
from purestep._steps.state import check_arrays

KEY = "purestep.fit"  # of a checkpoint's metadata


class Begun(NamedTuple):
    """The beginning of a run: its state, and what the checkpoint says if it is resumed."""

    state: Any
    stored: Mapping[str, Any] | None = None
    step: int = 0


def check_options(caller: str, checkpointer: Any, ranks: Ranks, **switches: Any) -> None:
    """Refuse a checkpointer of another type or of other ranks, and switches that are not Booleans."""
    if checkpointer is not None and not isinstance(checkpointer, Checkpointer):
        shown = checks.shown(checkpointer)
        raise TypeError(f"{caller}: checkpointer must be a ps.checkpoint.Checkpointer, got {shown:.200}")
    if checkpointer is not None and checkpointer._ranks.size != ranks.size:
        raise checks.error(
            caller,
            f"checkpointer must save on the {ranks.size} ranks that train, got one of "
            f"{checkpointer._ranks.size}: use a step of ps.data_parallel, or pass group= to Checkpointer",
        )
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{caller}: {name} must be True or False, got {checks.shown(value):.200}")


def restored(
    caller: str, checkpointer: Checkpointer | None, state: Any, ranks: Ranks, *, resume: bool
) -> Begun:
    """Return the newest checkpoint, or the given state without a checkpoint; lock the directory.

    Raises:
        ValueError: on every rank, if they do not begin at the same checkpoint.
    """
    if checkpointer is None:
        return Begun(state)
    check_arrays(caller, "state", state)
    claim(caller, checkpointer)
    made: list[Begun] = []

    def begin() -> int | None:
        made.append(_begun(caller, checkpointer, state, resume=resume))
        return None if made[0].stored is None else made[0].step

    found = ranks.gathered("the checkpoint to resume", begin)
    for rank, step in enumerate(found):
        if step != found[0]:
            shown = ["no checkpoint" if each is None else f"step {each}" for each in (found[0], step)]
            raise checks.error(
                caller,
                f"all ranks must resume the same checkpoint, got {shown[0]} on rank 0 and {shown[1]} on rank "
                f"{rank}: they must see the same directory",
            )
    return made[0]


def _begun(caller: str, checkpointer: Checkpointer, state: Any, *, resume: bool) -> Begun:
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


def fingerprint(source: Any, ranks: Ranks) -> int | None:
    """Return a checksum of the first batch of an `at(step)` source, or `None` for other sources.

    It is that of the rows of all ranks. If the source does not know these, nothing is known.
    """
    if not hasattr(source, "at") or is_on_policy(source):
        return None
    found = ranks.gathered("the first batch", lambda: checksum(whole_of(source).at(0)))
    return found[0] if len({*found}) == 1 else None


def claim(caller: str, checkpointer: Checkpointer) -> None:
    """Lock the directory before any work, so that a second run neither trains nor touches its files.

    Raises:
        ValueError: if the checkpointer is closed.
        LockedError: if another writer has the directory.
        FileNotFoundError, PermissionError: if not all ranks see the directory.
    """
    checkpointer._check_open(caller)
    try:
        checkpointer._committer.begin(caller)
    except LockedError:
        raise
    except OSError as error:  # The first checkpoint tries again, and warns.
        if checkpointer._ranks.size > 1 and isinstance(error, (FileNotFoundError, PermissionError)):
            raise


def take_up(
    caller: str, begun: Begun, ledger: Ledger, hooks: Hooks, source: Any, ranks: Ranks, *, same_data: bool
) -> None:
    """Continue the counts, the history and the callbacks of a stored run; refuse other data."""
    stored = begun.stored
    if stored is None:
        return
    if not stored:  # The checkpoint was saved by another loop.
        ledger.step = begun.step
        ledger.position = _counted(begun.step, source)
        return
    ledger.restore(stored["ledger"])
    hooks.restore(stored["callbacks"])
    before, kind = _kind_of(ledger.position), kind_of(source)
    known, now = stored["source"], fingerprint(source, ranks) if same_data else None
    if before != kind and same_data:
        raise checks.error(
            caller,
            f"source must be {before} as in the run that is resumed, got {kind}. Pass the same data, or "
            "same_data=False",
        )
    if before != kind:
        ledger.position = _counted(ledger.step, source)
    elif known is not None and now is not None and known != now:
        raise checks.error(
            caller,
            "source must give the batches of the run that is resumed: the batch of step 0 differs from that "
            f"of the run, which is at step {ledger.step}. Pass the same data, seed and batch size, or "
            "same_data=False",
        )


def kind_of(source: Any) -> str:
    """Return the kind of a source in words."""
    if is_on_policy(source):
        return "an on-policy source"
    return "an object with at(step)" if hasattr(source, "at") else "an iterable"


def _kind_of(position: Mapping[str, Any]) -> str:
    """Return the kind of source that gave a position."""
    if not position:
        return "an on-policy source"
    return "an object with at(step)" if "step" in position else "an iterable"


def _counted(step: int, source: Any) -> dict[str, Any]:
    """Return the position of an iterable after a number of batches."""
    length = batches_per_epoch(source)
    epoch, batch = divmod(step, length) if length else (0, step)
    return {"epoch": epoch, "batch": batch, "first": None}
