"""Sources that follow one another, and the curriculum of lengths."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from purestep._core import checks
from purestep._core.types import Batch
from purestep._data.core.checking import source_of, step_of
from purestep._data.core.ranks import OfSources
from purestep._data.text.token_windows import TokenWindows


class Stages(OfSources):
    """Sources that follow one another, each from a step on: a function of the step.

    A stage begins at the first batch of its source. Batches of different shapes are traced once each by a
    compiled step.

    >>> import mlx.core as mx, purestep as ps
    >>> easy, hard = (ps.data.Batches({"x": mx.full(4, value)}, 2) for value in (0, 1))
    >>> source = Stages([(0, easy), (100, hard)])
    >>> source.at(99)["x"].tolist(), source.at(100)["x"].tolist()
    ([0, 0], [1, 1])
    """

    def __init__(self, stages: Sequence[tuple[int, Any]]):
        """Check the stages.

        Args:
            stages: pairs of a first step and a source with `at(step)`; the first begins at 0, the others
                later than the one before.

        Raises:
            ValueError: if a stage does not begin after the one before, or its source has no batch.
            TypeError: if a source has no `at(step)`.
        """
        caller = "Stages"
        if not stages:
            raise checks.error(caller, "stages must hold at least one stage, got none")
        self._starts: list[int] = []
        self._sources: list[Any] = []
        for number, stage in enumerate(stages):
            if not isinstance(stage, (list, tuple)) or len(stage) != 2:
                rule = f"stages[{number}] must be a pair of a first step and a source"
                raise checks.error(caller, f"{rule}, got {checks.shown(stage)}")
            start, source = stage
            start = checks.integer(caller, f"stages[{number}][0]", start, least=0)
            if (self._starts and start <= self._starts[-1]) or (not self._starts and start):
                rule = f"above {self._starts[-1]}" if self._starts else "0"
                raise checks.error(caller, f"stages[{number}] must begin at step {rule}, got {start}")
            self._sources.append(source_of(caller, f"the source of stages[{number}]", source))
            self._starts.append(start)

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        step = step_of("Stages", step)
        stage = bisect_right(self._starts, step) - 1
        return self._sources[stage].at(step - self._starts[stage])


def length_curriculum(
    tokens: Any,
    batch_size: int,
    *,
    steps: int,
    shortest: int = 32,
    longest: int = 512,
    stages: int = 4,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Stages:
    """Return windows that grow from `shortest` to `longest` tokens in stages of equal length.

    The lengths form a geometric series from exactly `shortest` to exactly `longest`. Those between are
    rounded to multiples of 8 within the two. A batch always has about `batch_size * longest` tokens: shorter
    windows come in larger batches, whose size is rounded down to a multiple of `world`. The last stage has no
    end.

    Args:
        tokens: as for `TokenWindows`.
        batch_size: windows of a batch of the last stage, over all ranks; a multiple of `world`.
        steps: the steps of the whole curriculum; a stage has `steps / stages`.
        shortest: tokens of a window in the first stage, at least 8.
        longest: tokens of a window in the last stage, above `shortest`.
        stages: at least 2.
        seed: as for `TokenWindows`.
        rank: as for `TokenWindows`.
        world: as for `TokenWindows`.

    Raises:
        ValueError: if an option is out of range, or there are too few tokens for a stage.

    >>> import mlx.core as mx
    >>> source = length_curriculum(mx.arange(100_000), 4, steps=400)
    >>> [source.at(step)["inputs"].shape for step in (0, 100, 200, 300)]
    [(64, 32), (25, 80), (10, 200), (4, 512)]
    """
    caller = "length_curriculum"
    batch_size = checks.integer(caller, "batch_size", batch_size, least=1)
    stages = checks.integer(caller, "stages", stages, least=2)
    steps = checks.integer(caller, "steps", steps, least=stages)
    shortest = checks.integer(caller, "shortest", shortest, least=8)
    longest = checks.integer(caller, "longest", longest, least=9)
    world = checks.integer(caller, "world", world, least=1)
    if batch_size % world:
        raise checks.error(caller, f"batch_size must be a multiple of world={world}, got {batch_size}")
    if longest <= shortest:
        raise checks.error(caller, f"longest must be above shortest={shortest}, got {longest}")
    parts = []
    for stage in range(stages):
        exact = shortest * (longest / shortest) ** (stage / (stages - 1))
        rounded = exact if stage in (0, stages - 1) else 8 * round(exact / 8)
        context = min(max(round(rounded), shortest), longest)
        rows = batch_size * longest // context // world * world
        try:
            windows = TokenWindows(tokens, rows, context, seed=seed + stage, rank=rank, world=world)
        except ValueError as error:
            raise checks.error(caller, f"stage {stage + 1} of {stages} cannot be made: {error}") from None
        parts.append((stage * steps // stages, windows))
    return Stages(parts)
