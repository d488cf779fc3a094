"""`Mixture`: batches of several sources in exact proportions."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import from_seed
from purestep._core.types import Batch
from purestep._data.core import permutation
from purestep._data.core.checking import source_of, step_of
from purestep._data.core.ranks import OfSources

_CALLER = "Mixture"
_SALT = 0x6D6978  # so that the order of sources differs from the order in a source with the same seed
_SIMPLEST = 10**9  # the largest denominator; a float tells such fractions apart


class Mixture(OfSources):
    """Batches of several sources in exact proportions: a function of the seed and the step.

    In the first `n` blocks of `block` steps, every source gives less than one batch more or less than
    `n * block` times its share of the weights, for every `n`: proportions do not drift. In a single block, a
    source gives less than two batches more or less than its share, and exactly its share if that is a whole
    number. The order within a block is random.

    A source gives its batches from step 0 on, each once, in an order that is shuffled within a block. With
    weights in stages, the counts are exact from the beginning of each stage, and a source continues where
    the stage before left it.

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
                is a multiple of `block`, and such numbers: `[(0, [1, 0]), (1000, [1, 3])]`. Decimal fractions
                are exact: 0.1 is one tenth, and 1 / 3 is one third.
            seed: in [0, 2**64).
            block: steps of a block, at least 1. Each weight above 0 must give at least one batch in a block.

        Raises:
            ValueError: if a weight that is above 0 gives less than one batch in a block, or an argument is
                out of range.
            TypeError: if a source has no `at(step)`.
        """
        if not hasattr(sources, "__len__"):
            raise TypeError(f"{_CALLER}: sources must be a list of sources, got {type(sources).__name__}")
        if len(sources) == 0:
            raise checks.error(_CALLER, "sources must hold at least one source, got none")
        self._sources = [
            source_of(_CALLER, f"sources[{number}]", source) for number, source in enumerate(sources)
        ]
        from_seed(_CALLER, "seed", seed)
        self._seed = int(seed)
        self._block = checks.integer(_CALLER, "block", block, least=1)
        given: Any = weights
        staged = isinstance(given, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in given)
        stages = given if staged else [(0, given)]
        self._starts: list[int] = []  # of stages, in blocks
        self._shares: list[Shares] = []
        self._before: list[list[int]] = []  # batches of each source before a stage
        for stage in stages:
            if not isinstance(stage, (list, tuple)) or len(stage) != 2:
                rule = "weights must be numbers, or pairs of a first step and numbers"
                raise checks.error(_CALLER, f"{rule}, got {checks.shown(stage)} among the pairs")
            start, numbers = stage
            start = checks.integer(_CALLER, "the first step of a stage", start, least=0)
            first = start // self._block
            if start % self._block or (first <= self._starts[-1] if self._starts else first):
                rule = f"stages must begin at 0 and then at rising multiples of block={block}"
                raise checks.error(_CALLER, f"{rule}, got {start}")
            shares = Shares.of(numbers, len(self._sources), self._block)
            before = [0] * len(self._sources)
            if self._starts:
                counts = self._shares[-1].counts(first - self._starts[-1])
                before = [done + more for done, more in zip(self._before[-1], counts, strict=True)]
            self._starts.append(first)
            self._shares.append(shares)
            self._before.append(before)

    def place(self, step: int) -> tuple[int, int]:
        """Return the number of the source of a step, and the step of that source."""
        block, within = divmod(step_of(_CALLER, step), self._block)
        stage = bisect_right(self._starts, block) - 1
        shares, passed = self._shares[stage], block - self._starts[stage]
        (slot,) = permutation.shuffled(self._seed ^ _SALT, block, [within], self._block)
        done, after = shares.ends(passed), shares.ends(passed + 1)
        # The slots of a block: first those of the first source, and so on.
        ends = [late - early for early, late in zip(done, after, strict=True)]
        place = bisect_right(ends, slot)
        slot -= ends[place - 1] if place else 0
        source = shares.order[place]
        earlier = done[place] - (done[place - 1] if place else 0)
        return source, self._before[stage][source] + earlier + slot

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        source, own = self.place(step)
        return self._sources[source].at(own)


class Shares(NamedTuple):
    """Whole numbers of batches of each source in any number of blocks, by cumulative rounding.

    The first sources together get the floor of their exact share of all batches. A source gets the difference
    of two such floors, so it is less than one batch off.

    Attributes:
        order: the sources; those with a whole number of batches in a block come first, so that the others do
            not disturb them.
        edges: shares of the first sources of this order in a block, summed up: numerators.
        total: the denominator.

    >>> shares = Shares.of([1, 1, 1], 3, 10)
    >>> [shares.counts(blocks) for blocks in range(4)]
    [[0, 0, 0], [3, 3, 4], [6, 7, 7], [10, 10, 10]]
    """

    order: tuple[int, ...]
    edges: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, weights: Any, count: int, block: int) -> "Shares":
        """Check the weights of `count` sources; a weight above 0 must give a batch in each block."""
        if isinstance(weights, (mx.array, str)) or not hasattr(weights, "__len__"):
            raise TypeError(f"{_CALLER}: weights must be a sequence of numbers, got {checks.shown(weights)}")
        if len(weights) != count:
            raise checks.error(_CALLER, f"weights must have one number a source, {count}, got {len(weights)}")
        exact = [_exact(number, weight) for number, weight in enumerate(weights)]
        largest = max(exact)
        if not largest:
            raise checks.error(_CALLER, "weights must not all be 0")
        exact = [_simple(weight / largest) for weight in exact]
        shares = [weight * block / sum(exact) for weight in exact]
        for number, share in enumerate(shares):
            if 0 < share < 1:
                raise checks.error(
                    _CALLER,
                    f"weights[{number}]={weights[number]:g} must give at least one batch in a block of "
                    f"{block} steps, got {float(share):.2g}; "
                    f"block must be at least {math.ceil(block / share)}",
                )
        order = sorted(range(count), key=lambda number: (shares[number].denominator > 1, number))
        edges = list(accumulate(shares[number] for number in order))
        common = math.lcm(*(edge.denominator for edge in edges))
        return cls(tuple(order), tuple(int(edge * common) for edge in edges), common)

    def ends(self, blocks: int) -> list[int]:
        """Return the batches of the first sources of the order in some blocks, summed up."""
        return [blocks * edge // self.total for edge in self.edges]

    def counts(self, blocks: int) -> list[int]:
        """Return the batches of each source in some blocks."""
        counts, before = [0] * len(self.order), 0
        for source, end in zip(self.order, self.ends(blocks), strict=True):
            counts[source], before = end - before, end
        return counts


def _exact(number: int, weight: Any) -> Fraction:
    """Return a weight as the fraction that its decimal digits say."""
    name = f"weights[{number}]"
    if isinstance(weight, mx.array):
        raise TypeError(f"{_CALLER}: {name} must be a Python number, got an array")
    return Fraction(repr(checks.number(_CALLER, name, weight, least=0)))


def _simple(ratio: Fraction) -> Fraction:
    """Return the fraction that was rounded to a float: one sixth for 0.16666666666666666."""
    return ratio.limit_denominator(_SIMPLEST) or ratio
