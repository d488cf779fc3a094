"""`Mixture`: batches of several sources in exact proportions."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from purestep._core import checks
from purestep._core.rng import from_seed
from purestep._core.types import Batch
from purestep._data.core import permutation

_SALT = 0x6D6978  # so that the order of sources differs from the order in a source with the same seed


class Mixture:
    """Batches of several sources, in exact proportions within each block of steps.

    In a block of `block` steps every source gives a number of batches that is as close to its weight as whole
    numbers allow; their order is random. Which source a step takes, and which of its batches, is a function
    of the seed and the step, so a resumed run needs nothing. Every batch of a source is used once, in an
    order that is shuffled within a block.

    >>> import mlx.core as mx, purestep as ps
    >>> sources = [ps.data.Batches({"x": mx.full(8, value)}, 1) for value in (0, 1)]
    >>> mixture = Mixture(sources, [0.75, 0.25], block=8)
    >>> sum(mixture.at(step)["x"].item() for step in range(8))
    2
    """

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[float] | Sequence[tuple[int, Sequence[float]]],
        *,
        seed: int = 0,
        block: int = 100,
    ):
        """Check the sources and the weights.

        Args:
            sources: objects with `at(step)`, at least one.
            weights: a number for each source, at least 0, not all 0; or stages, pairs of a first step, which
                is a multiple of `block`, and such numbers: `[(0, [1, 0]), (1000, [1, 3])]`.
            seed: in [0, 2**64).
            block: steps in which the proportions are exact, at least 1. Weights are rounded to multiples of
                `1 / block`.

        Raises:
            ValueError: if a weight that is above 0 is rounded to no batch in a block, or an argument is out
                of range.
        """
        caller = "Mixture"
        if not sources:
            raise checks.error(caller, "sources must hold at least one source, got none")
        for number, source in enumerate(sources):
            if not hasattr(source, "at"):
                raise TypeError(f"{caller}: sources[{number}] must have at(step)")
        from_seed(caller, "seed", seed)
        self._sources, self._seed = list(sources), seed
        self._block = checks.integer(caller, "block", block, least=1)
        staged = bool(weights) and isinstance(weights[0], (list, tuple))
        stages: Any = weights if staged else [(0, weights)]
        self._starts: list[int] = []  # of stages, in blocks
        self._counts: list[list[int]] = []  # batches of each source in a block of a stage
        self._before: list[list[int]] = []  # batches of each source before a stage
        for start, numbers in stages:
            start = checks.integer(caller, "the first step of a stage", start, least=0)
            first = start // self._block
            if start % self._block or (first <= self._starts[-1] if self._starts else first):
                rule = f"stages must begin at 0 and then at rising multiples of block={block}"
                raise checks.error(caller, f"{rule}, got {start}")
            counts = shares(caller, numbers, len(self._sources), self._block)
            passed = first - self._starts[-1] if self._starts else 0
            earlier = zip(self._before[-1], self._counts[-1], strict=True) if self._starts else []
            before = [done + passed * each for done, each in earlier] or [0] * len(counts)
            self._starts.append(first)
            self._counts.append(counts)
            self._before.append(before)

    def place(self, step: int) -> tuple[int, int]:
        """Return the number of the source of a step, and the step of that source."""
        block, within = divmod(step, self._block)
        stage = bisect_right(self._starts, block) - 1
        counts = self._counts[stage]
        (slot,) = permutation.shuffled(self._seed ^ _SALT, block, [within], self._block)
        ends = list(accumulate(counts))
        source = bisect_right(ends, slot)
        done = self._before[stage][source] + (block - self._starts[stage]) * counts[source]
        return source, done + slot - (ends[source] - counts[source])

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        source, own = self.place(step)
        return self._sources[source].at(own)


def shares(caller: str, weights: Sequence[float], count: int, block: int) -> list[int]:
    """Divide a block among sources by their weights; the largest remainders are rounded up.

    >>> shares("Mixture", [1, 1, 1], 3, 10)
    [4, 3, 3]
    """
    if len(weights) != count:
        raise checks.error(caller, f"weights must have one number a source, {count}, got {len(weights)}")
    numbers = [
        checks.number(caller, f"weights[{number}]", weight, least=0) for number, weight in enumerate(weights)
    ]
    total = sum(numbers)
    if not total:
        raise checks.error(caller, "weights must not all be 0")
    exact = [number * block / total for number in numbers]
    found = [int(number) for number in exact]
    by_remainder = sorted(range(count), key=lambda number: (found[number] - exact[number], number))
    for number in by_remainder[: block - sum(found)]:
        found[number] += 1
    for number, (weight, share) in enumerate(zip(numbers, found, strict=True)):
        if weight and not share:
            message = f"weights[{number}]={weight:g} gives no batch in a block of {block} steps: raise block"
            raise checks.error(caller, message)
    return found
