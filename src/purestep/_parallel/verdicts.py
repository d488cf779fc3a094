"""When a group of processes must end, and why: decisions from plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """What is known of one rank.

    Attributes:
        rank: its number.
        heard: seconds, when it was last heard from.
        beats: how often its loop has told that it advances; `None` before the first time.
        advanced: seconds, when it last did.
        done: whether it has left the watched block.
    """

    rank: int
    heard: float
    beats: int | None = None
    advanced: float = 0.0
    done: bool = False


_BACKENDS = ("[ring]", "[mpi]", "[jaccl]", "nccl")


def verdict(ranks: Sequence[Seen], now: float, timeout: float, *, failing: bool = False) -> str | None:
    """Return why the group must end, or `None`.

    A rank that is silent is stopped, or its machine is gone. If all are heard from but none advances, the
    ranks that are behind hold up the others. If a rank has failed already (`failing`), only silence counts.

    >>> verdict([Seen(0, 9.0), Seen(1, 2.0)], 10.0, 5.0)
    'rank 1 has not been heard from for 8 s'
    >>> ranks = [Seen(0, 9.0, beats=7, advanced=3.0), Seen(1, 9.5, beats=5, advanced=1.0)]
    >>> verdict(ranks, 10.0, 5.0)
    'no rank has advanced for 7 s: rank 1 hangs after 5 steps, the others are at 7'
    """
    running = [each for each in ranks if not each.done]
    for each in running:
        if now - each.heard > timeout:
            return f"rank {each.rank} has not been heard from for {now - each.heard:.0f} s"
    beating = [(each, each.beats) for each in ranks if each.beats is not None]
    waiting = [each for each, _ in beating if not each.done]
    if failing or not waiting or any(now - each.advanced <= timeout for each in waiting):
        return None
    passed = now - max(each.advanced for each in waiting)
    least, most = min(beats for _, beats in beating), max(beats for _, beats in beating)
    behind = [each for each, beats in beating if beats == least]
    start = f"no rank has advanced for {passed:.0f} s: "
    if least == most:
        return start + f"{named([each.rank for each in waiting])} at step {least}"
    verb = "left the run" if all(each.done for each in behind) else "hangs" if len(behind) == 1 else "hang"
    return start + (
        f"{named([each.rank for each in behind])} {verb} after {least} steps, the others are at {most}"
    )


def is_of_connection(error: str) -> bool:
    """Return whether an error tells that a backend of MLX has lost another rank.

    >>> is_of_connection("RuntimeError: [ring] connection to a peer was lost")
    True
    """
    return any(name in error.lower() for name in _BACKENDS)


def named(ranks: Sequence[int]) -> str:
    """Return ranks in words.

    >>> named([3]), named([1, 2])
    ('rank 3', 'ranks 1, 2')
    """
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def other_program(mine: Mapping[str, str], its: Mapping[str, str], rank: int) -> str | None:
    """Return why a rank may not join, if it runs another program than rank 0.

    >>> other_program({"mlx": "0.32"}, {"mlx": "0.31"}, 1)
    'rank 1 must run the same program as rank 0, got mlx 0.31 and 0.32'
    """
    for name in sorted({*mine, *its}):
        if mine.get(name) != its.get(name):
            got = f"{name} {its.get(name)} and {mine.get(name)}"
            return f"rank {rank} must run the same program as rank 0, got {got}"
    return None
