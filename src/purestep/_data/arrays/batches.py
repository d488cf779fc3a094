"""`Batches`: shuffled batches of arrays, found by the step number."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.rng import from_seed
from purestep._core.types import Batch, Tree
from purestep._data.arrays.rows import count_of, gathered, prepared
from purestep._data.core import permutation
from purestep._data.core.checking import step_of

REMAINDERS = ("drop", "pad", "wrap")


@dataclass(frozen=True, eq=False)
class Batches:
    """A source of shuffled batches of arrays: every row once an epoch.

    `at(step)` is a pure function of the step. The place of a row in an epoch is a permutation that is
    computed for single rows, so no step needs the ones before, and no array of the data's length is made:
    about 2 microseconds a row, for a thousand rows or for 10**9. `len(source)` is the number of batches of an
    epoch.

    The rows are copied on the host. With numpy memory maps, the data may be larger than memory.

    Attributes:
        arrays: a dict, or another tree, of arrays `[rows, ...]`: MLX arrays, numpy arrays and memory maps, or
            sequences of rows. All have the same number of rows. A batch is the same tree of MLX arrays.
            Dtypes are converted as by `mx.array`: float64 becomes float32, int64 stays. A list of numbers or
            of lists is converted at once; a list of arrays is a tree of arrays, not one array.
        batch_size: rows of a batch, over all ranks.
        seed: in [0, 2**64), the seed of the order.
        shuffle: draw a new order for each epoch; otherwise rows come in their order.
        remainder: the rows that do not fill the last batch of an epoch. `drop` leaves them out. `pad` repeats
            rows to fill the batch, and adds a float32 array [batch_size] to every batch, 1 for real rows and
            0 for repeated ones. `wrap` fills the batch with the first rows of the next epoch, so batches are
            cut from one endless row of epochs.
        weights: the name of the array that `pad` adds; `arrays` must be a dict without it.
        rank: the number of this process, in [0, world).
        world: the number of processes. Each takes `batch_size / world` rows of every batch.

    Raises:
        ValueError: if the arrays differ in length (with the path), `batch_size` is not divisible by `world`,
            or an epoch has no batch.
        TypeError: if a leaf is not an array of numbers that MLX has: strings, objects, tables of pandas.

    >>> source = Batches({"x": mx.arange(6)}, batch_size=2, shuffle=False)
    >>> source.at(1), source.at(3), len(source)
    ({'x': array([2, 3], dtype=int32)}, {'x': array([0, 1], dtype=int32)}, 3)
    >>> source = Batches({"x": mx.arange(3)}, batch_size=2, shuffle=False, remainder="pad")
    >>> source.at(1)
    {'x': array([2, 0], dtype=int32), 'weights': array([1, 0], dtype=float32)}
    """

    arrays: Tree
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = True
    remainder: str = "drop"
    weights: str = "weights"
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        caller = "Batches"
        arrays = prepared(caller, self.arrays)
        rows = count_of(caller, arrays)
        batch_size = checks.integer(caller, "batch_size", self.batch_size, least=1)
        from_seed(caller, "seed", self.seed)
        checks.one_of(caller, "remainder", self.remainder, REMAINDERS)
        world = checks.integer(caller, "world", self.world, least=1)
        rank = checks.integer(caller, "rank", self.rank, least=0)
        if rank >= world:
            raise checks.error(caller, f"rank must be less than world={world}, got {rank}")
        if batch_size % world:
            raise checks.error(caller, f"batch_size must be divisible by world={world}, got {batch_size}")
        if self.remainder == "drop" and batch_size > rows:
            raise checks.error(
                caller,
                f"batch_size must be at most the {rows} rows if the remainder is dropped, got {batch_size}",
            )
        if self.remainder == "pad" and not (
            isinstance(self.arrays, dict) and self.weights not in self.arrays
        ):
            raise checks.error(caller, f"arrays must be a dict without {self.weights!r} for remainder='pad'")
        # Python integers do not overflow, as numpy's do in the products below.
        values = {"arrays": arrays, "batch_size": batch_size, "seed": int(self.seed), "rank": rank}
        for name, value in {**values, "world": world, "_rows": rows}.items():
            object.__setattr__(self, name, value)
        # Another thread cannot evaluate lazy arrays that this one made.
        mx.eval([leaf for leaf in tree.leaves(arrays) if isinstance(leaf, mx.array)])

    @property
    def rows(self) -> int:
        """The rows of the data."""
        return vars(self)["_rows"]

    @property
    def whole(self) -> "Batches":
        """The source of the rows of all processes."""
        return self if self.world == 1 else replace(self, rank=0, world=1)

    def _of_rank(self, rank: int, world: int, child: Callable[[Any], Any]) -> "Batches | None":
        """Return the source that reads the rows of one process, if they are equally many for each."""
        return None if self.batch_size % world else replace(self, rank=rank, world=world)

    def __len__(self) -> int:
        """Return the number of batches of an epoch; with `wrap` the last one belongs to two epochs."""
        return self.rows // self.batch_size if self.remainder == "drop" else -(-self.rows // self.batch_size)

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        step = step_of("Batches", step)
        size = self.batch_size // self.world
        first = self.rank * size
        if self.remainder == "wrap":
            start = step * self.batch_size + first
            return gathered(self.arrays, self._numbers(range(start, start + size)))
        epoch, batch = divmod(step, len(self))
        start = batch * self.batch_size + first
        places = [epoch * self.rows + place % self.rows for place in range(start, start + size)]
        found = gathered(self.arrays, self._numbers(places))
        if self.remainder == "pad":
            real = [float(place < self.rows) for place in range(start, start + size)]
            found = {**found, self.weights: mx.array(real, mx.float32)}
        return found

    def _numbers(self, places: "range | list[int]") -> list[int]:
        """Return the rows at places of the endless row of epochs."""
        if not self.shuffle:
            return [place % self.rows for place in places]
        by_epoch: dict[int, list[int]] = {}
        for place in places:
            epoch, within = divmod(place, self.rows)
            by_epoch.setdefault(epoch, []).append(within)
        numbers: list[int] = []
        for epoch, within in by_epoch.items():
            numbers += permutation.shuffled(self.seed, epoch, within, self.rows)
        return numbers

    def __repr__(self) -> str:
        order = f"seed={self.seed}" if self.shuffle else "shuffle=False"
        return (
            f"Batches({self.rows} rows, batch_size={self.batch_size}, {order}, remainder={self.remainder!r})"
        )
