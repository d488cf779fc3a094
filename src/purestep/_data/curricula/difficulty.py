"""The curriculum of difficulty: from easy rows to all rows."""

from array import array
from collections.abc import Sequence
from typing import Any

from purestep._core import checks
from purestep._core.rng import from_seed
from purestep._core.types import Batch, Tree
from purestep._data.arrays.batches import Batches
from purestep._data.arrays.rows import count_of, gathered, prepared
from purestep._data.core import permutation
from purestep._data.core.checking import step_of


class DifficultyCurriculum:
    """Batches that are easy at first. `difficulty_curriculum` makes it."""

    def __init__(self, whole: Batches, order: "array[int]", warmup: int, easiest: float):
        self._whole, self._order, self._warmup, self._easiest = whole, order, warmup, easiest

    def pool(self, step: int) -> int:
        """Return the number of rows, from the easiest on, that a step draws from."""
        share = self._easiest + (1 - self._easiest) * min(step / self._warmup, 1.0)
        return min(len(self._order), max(self._whole.batch_size, round(share * len(self._order))))

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        step = step_of("DifficultyCurriculum", step)
        if step >= self._warmup:
            return self._whole.at(step - self._warmup)
        size = self._whole.batch_size // self._whole.world
        first = self._whole.rank * size
        own = -1 - step  # another order than those of the epochs after the warm-up
        places = permutation.shuffled(self._whole.seed, own, range(first, first + size), self.pool(step))
        return gathered(self._whole.arrays, [self._order[place] for place in places])


def difficulty_curriculum(
    arrays: Tree,
    difficulty: Sequence[float] | Any,
    batch_size: int,
    *,
    steps: int,
    warmup_fraction: float = 0.5,
    easiest: float = 0.2,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DifficultyCurriculum:
    """Return batches that are drawn from the easiest rows at first, and from all rows after a warm-up.

    In the warm-up, a batch is drawn without repetition from the easiest rows; their share of all rows grows
    linearly from `easiest` to 1. After it, each epoch is a shuffled pass, as in `Batches`: rows that do
    not fill the last batch are left out. Any batch is a
    function of the seed and the step.

    Args:
        arrays: as for `Batches`.
        difficulty: a number for each row, such as its loss under a small model or its length; smaller is
            easier. Equal numbers keep the order of the rows.
        batch_size: rows of a batch, over all ranks.
        steps: the steps of the run.
        warmup_fraction: the part of the steps in which the share grows, in (0, 1].
        easiest: the share of the rows at step 0, in (0, 1].
        seed: in [0, 2**64).
        rank: as for `Batches`.
        world: as for `Batches`.

    Raises:
        ValueError: if there is not one difficulty a row, if one is NaN, or if the easiest rows at step 0 are
            fewer than a batch.

    >>> import mlx.core as mx
    >>> source = difficulty_curriculum({"x": mx.arange(100)}, list(range(100)), 4, steps=1000)
    >>> source.pool(0), source.pool(250), source.pool(500)
    (20, 60, 100)
    >>> max(source.at(0)["x"].tolist()) < 20
    True
    """
    caller = "difficulty_curriculum"
    from_seed(caller, "seed", seed)
    steps = checks.integer(caller, "steps", steps, least=1)
    warmup_fraction = checks.number(caller, "warmup_fraction", warmup_fraction, above=0, most=1)
    easiest = checks.number(caller, "easiest", easiest, above=0, most=1)
    arrays = prepared(caller, arrays)
    rows = count_of(caller, arrays)
    numbers = _numbers(caller, difficulty, rows)
    whole = Batches(arrays, batch_size, seed=seed, rank=rank, world=world)
    if round(easiest * rows) < whole.batch_size:
        raise checks.error(
            caller,
            f"the first stage must have at least a batch of {whole.batch_size} rows: easiest={easiest} of "
            f"{rows} rows are {round(easiest * rows)}",
        )
    # Sorting keeps the order of equal numbers.
    order = array("q", sorted(range(rows), key=numbers.__getitem__))
    return DifficultyCurriculum(whole, order, max(1, round(steps * warmup_fraction)), easiest)


def _numbers(caller: str, difficulty: Any, rows: int) -> list[float]:
    """Return one number a row; refuse NaN, which has no place in an order."""
    if not hasattr(difficulty, "__iter__"):
        raise TypeError(f"{caller}: difficulty must be a sequence, got {checks.shown(difficulty)}")
    listed = difficulty.tolist() if hasattr(difficulty, "tolist") else list(difficulty)
    if not isinstance(listed, list) or len(listed) != rows:
        count = len(listed) if isinstance(listed, list) else 1
        raise checks.error(caller, f"difficulty must have one number a row, {rows}, got {count}")
    numbers = [checks.python_number(value) for value in listed]
    for row, number in enumerate(numbers):
        if not isinstance(number, (int, float)):
            raise TypeError(
                f"{caller}: difficulty must hold numbers, got {checks.shown(number)} in row {row}"
            )
        if number != number:
            raise checks.error(caller, f"difficulty must not be NaN, got it in row {row}")
    return numbers
