"""What the processes of one run tell each other between steps, so that they take the same decisions."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import mlx.core as mx

from purestep._core import checks
from purestep._loop.core.lockstep import Lockstep, LostError

Value = TypeVar("Value")

_ENDED = "the end"  # where a rank is that fails between two rounds
_LIMIT = 30.0  # seconds that such a rank waits for the others: they may hang without it


class RankError(RuntimeError):
    """Another rank raised an error."""


class Asked(Protocol):
    """Tells whether a signal has come; see `signals`."""

    received: bool


class _Never:
    received = False


class Ranks:
    """A run in one process: nothing is exchanged. `Group` is a run in several.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        asked: tells whether this process received a signal.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self.asked: Asked = _Never()

    @property
    def signalled(self) -> bool:
        """Whether the run ends because of a signal."""
        return self.asked.received

    def gathered(self, place: str, act: Callable[[], Value]) -> list[Value]:
        """Return the results of a function on all ranks, JSON values; raise the error of any of them.

        Args:
            place: where the run is. Ranks that are at different places are refused.
            act: the function. It is called on this rank, and must not start operations of all ranks.
        """
        return [act()]

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank ends with an error, unless they know."""

    @property
    def lost(self) -> bool:
        """Whether the ranks cannot act together any more."""
        return False

    def close(self) -> None:
        """End the exchange."""


class Group(Ranks):
    """A run in several processes. Each makes the same rounds in the same order.

    A signal to one rank becomes known to all in the next round: `signalled` changes nowhere else.
    """

    def __init__(self, caller: str, group: mx.distributed.Group):
        super().__init__()
        self._caller, self._lockstep = caller, Lockstep(caller, group)
        self.rank, self.size = group.rank(), group.size()
        self._signalled = False
        self._known: BaseException | None = None  # the error that this rank raises, as the others know
        self._lost = False

    @property
    def signalled(self) -> bool:
        """Whether a rank has received a signal, as all ranks know since the last round."""
        return self._signalled

    def gathered(self, place: str, act: Callable[[], Value]) -> list[Value]:
        """Return the results of a function on all ranks; raise the error of any of them on all."""
        try:
            own = {"value": act()}
        except Exception as error:
            self._round(place, {"error": said(error)}, error)
            raise
        return [each["value"] for each in self._round(place, own, None)]

    def failed(self, error: BaseException) -> None:
        """Tell the others in the round that they are in, or come to, that this rank ends with an error."""
        if error is self._known or self._lost or not isinstance(error, Exception):
            return
        self._round(_ENDED, {"error": said(error)}, error, limit=_LIMIT)

    @property
    def lost(self) -> bool:
        """Whether the ranks cannot act together any more: one has ended, or ends elsewhere than this one."""
        return self._lost

    def close(self) -> None:
        """Close the connections."""
        self._lockstep.close()

    def _round(
        self, place: str, own: dict[str, Any], error: Exception | None, *, limit: float | None = None
    ) -> list[dict[str, Any]]:
        """Exchange messages. If any rank failed, note the error that this one raises, and raise it."""
        self._known = error
        message = {"at": place, "signal": self.asked.received, **own}
        try:
            found = self._lockstep.exchange(message, limit=limit)
        except LostError as lost:
            self._lost = True
            if error is None:
                self._known = lost
                raise
            return []
        self._signalled = self._signalled or any(each["signal"] for each in found)
        self._lost = len({each["at"] for each in found}) > 1
        if error is not None:
            return []
        failure = self._failure(found)
        if failure is not None:
            self._known = failure
            raise failure
        return found

    def _failure(self, found: Sequence[dict[str, Any]]) -> Exception | None:
        for rank, each in enumerate(found):
            if "error" in each:
                return RankError(f"{self._caller}: rank {rank} failed: {each['error']}")
        for rank, each in enumerate(found):
            if each["at"] != found[0]["at"]:
                return RankError(
                    f"{self._caller}: all ranks must do the same, got rank {rank} at {each['at']} and rank 0 "
                    f"at {found[0]['at']}"
                )
        return None


def said(error: BaseException) -> str:
    """Return the class and the message of an error.

    >>> said(ValueError("x must be above 0"))
    'ValueError: x must be above 0'
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def group_of_step(step: Any) -> Any:
    """Return the group of processes that compute a step together, through `compiled`, or `None`."""
    while step is not None:
        group = getattr(step, "group", None)
        if group is not None:
            return group
        step = getattr(step, "step", None)
    return None


def ranks_of(caller: str, step: Any, group: Any) -> Ranks:
    """Return the processes of a run: those of its step, if no group is given."""
    if group is not None and not isinstance(group, mx.distributed.Group):
        raise TypeError(
            f"{caller}: group must be a group of mx.distributed.init, got {checks.shown(group):.80}"
        )
    group = group_of_step(step) if group is None else group
    return Ranks() if group is None or group.size() == 1 else Group(caller, group)
