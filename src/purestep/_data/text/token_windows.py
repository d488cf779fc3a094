"""Shuffled windows into tokens, in memory or in a file."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import from_seed
from purestep._core.types import Batch
from purestep._data.core import permutation
from purestep._data.core.tokens import LIMIT
from purestep._data.text import layouts
from purestep._data.text.files import TokenFile

_CALLER = "TokenWindows"


class TokenWindows:
    """A source of disjoint windows into a sequence of tokens, in a new order each epoch.

    `at(step)` returns `{"inputs": int32 [rows, context], "targets": int32 [rows, context]}`; targets are the
    inputs one token later. `len(source)` is the number of batches of an epoch.

    In each epoch every token is a target at most once. An epoch starts at a random offset below `context`,
    so the windows of two epochs have different borders. Order and offset are functions of the seed and the
    epoch, so any batch is found without those before it. Fewer than `batch_size + 1` windows are left
    out of an epoch: those that do not fill a batch, and the parts before and after the shifted windows.

    For evaluation, `shuffle=False` with `ignore_index` makes every token but the first a target exactly once.

    A batch of a file is read from the disk when it is asked for. No part of the file stays in memory.

    >>> source = TokenWindows(mx.arange(100), batch_size=2, context=8, seed=0)
    >>> len(source)
    5
    >>> batch = source.at(3)
    >>> mx.array_equal(batch["targets"], batch["inputs"] + 1)
    array(True, dtype=bool)
    """

    def __init__(
        self,
        tokens: TokenFile | mx.array | Any,
        batch_size: int,
        context: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        ignore_index: int | None = None,
        vocabulary: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        """Describe the windows; nothing is read but the length.

        Args:
            tokens: a `TokenFile`; or an integer array [length] of MLX or numpy, also a `numpy.memmap`. A
                memory map keeps the visited part of its file in memory; a `TokenFile` does not.
            batch_size: windows of a batch, over all ranks; a multiple of `world`.
            context: tokens of a window.
            seed: in [0, 2**64).
            shuffle: draw a new order and a new offset each epoch. Otherwise all epochs follow the text.
            ignore_index: a negative number that fills the targets after the end of the tokens; the inputs
                there are 0. No token is then left out, and all batches have one shape. It needs
                `shuffle=False`. Pass the same number to the loss: `cross_entropy(..., ignore_index=-100)`.
            vocabulary: number of tokens of the model. Every batch is checked on the host before it reaches
                the device. `None`: tokens must only be at least 0 and fit int32.
            rank: number of this process, in [0, world).
            world: number of processes. Each gets its own `batch_size / world` rows of every batch.

        Raises:
            ValueError: if an argument is out of range, or the tokens are too few for one batch. `at` raises
                it for a token that is not in the vocabulary, with its position.
        """
        self.batch_size = checks.integer(_CALLER, "batch_size", batch_size, least=1)
        self.context = checks.integer(_CALLER, "context", context, least=1)
        from_seed(_CALLER, "seed", seed)
        self.seed, self.shuffle = int(seed), bool(shuffle)
        self.ignore_index = ignore_index
        if ignore_index is not None and checks.integer(_CALLER, "ignore_index", ignore_index) >= 0:
            raise checks.error(
                _CALLER, f"ignore_index must be negative, got {ignore_index}: it may be a token"
            )
        if ignore_index is not None and self.shuffle:
            raise checks.error(_CALLER, "ignore_index needs shuffle=False: shuffled windows leave tokens out")
        self.world = checks.integer(_CALLER, "world", world, least=1)
        self.rank = checks.integer(_CALLER, "rank", rank, least=0)
        if self.rank >= self.world:
            raise checks.error(_CALLER, f"rank must be less than world={self.world}, got {rank}")
        if self.batch_size % self.world:
            raise checks.error(
                _CALLER, f"batch_size must be a multiple of world={self.world}, got {batch_size}"
            )
        if vocabulary is not None:
            vocabulary = checks.integer(_CALLER, "vocabulary", vocabulary, least=1)
            if vocabulary > LIMIT:
                raise checks.error(_CALLER, f"vocabulary must be at most 2**31, got {vocabulary}")
        self.vocabulary = vocabulary
        self.tokens = tokens
        self._reader = tokens if isinstance(tokens, TokenFile) else _Memory(tokens)
        count = len(self._reader)
        if self.ignore_index is not None:
            if count < 2:
                raise checks.error(_CALLER, f"tokens must hold at least 2 tokens, got {count}")
            self._windows = -(-(count - 1) // (context * batch_size)) * batch_size
        elif self.shuffle:
            self._windows = max((count - self.context) // self.context, min(1, (count - 1) // self.context))
        else:
            self._windows = (count - 1) // self.context
        # Any offset up to this leaves room for all windows.
        self._slack = min(self.context - 1, count - 1 - self._windows * self.context)
        if self._windows < self.batch_size:
            raise checks.error(
                _CALLER,
                f"tokens must hold at least batch_size={self.batch_size} windows of context={self.context} "
                f"tokens, got {max(self._windows, 0)} windows in {count} tokens",
            )

    @property
    def whole(self) -> "TokenWindows":
        """The source of the rows of all processes."""
        return self if self.world == 1 else self._with(0, 1)

    def _of_rank(self, rank: int, world: int, child: Callable[[Any], Any]) -> "TokenWindows | None":
        """Return the source that reads the rows of one process, if they are equally many for each."""
        return None if self.batch_size % world else self._with(rank, world)

    def _with(self, rank: int, world: int) -> "TokenWindows":
        made = copy.copy(self)
        made.rank, made.world = rank, world
        return made

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self._windows // self.batch_size

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0.

        Raises:
            ValueError: if a token is not in the vocabulary.
        """
        step = checks.integer("TokenWindows.at", "step", step, least=0)
        epoch, batch = divmod(step, len(self))
        rows = self.batch_size // self.world
        first = batch * self.batch_size + self.rank * rows
        if self.ignore_index is not None:
            return self._filled(first * self.context, rows, self.ignore_index)
        starts = self._starts(epoch, range(first, first + rows))
        windows = self._reader.windows(starts, self.context + 1)
        self._check(windows, starts)
        windows = windows.astype(mx.int32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}

    def _filled(self, start: int, rows: int, ignore_index: int) -> Batch:
        """Return windows that follow each other, filled after the end of the tokens."""
        count, shape = len(self._reader), (rows, self.context)
        start, stop = min(start, count - 1), min(start + rows * self.context + 1, count)
        tokens = self._reader.windows([start], stop - start)
        self._check(tokens, [start])
        tokens = tokens[0].astype(mx.int32)
        missing = rows * self.context + 1 - tokens.size
        inputs = mx.concatenate([tokens[:-1], mx.zeros(missing, mx.int32)])
        targets = mx.concatenate([tokens[1:], mx.full(missing, ignore_index, mx.int32)])
        return {"inputs": inputs.reshape(shape), "targets": targets.reshape(shape)}

    def _starts(self, epoch: int, numbers: range) -> list[int]:
        if not self.shuffle:
            return [number * self.context for number in numbers]
        offset = permutation.draw(self.seed, epoch) % (self._slack + 1)
        places = permutation.shuffled(self.seed, epoch, numbers, self._windows)
        return [offset + place * self.context for place in places]

    def _check(self, windows: mx.array, starts: Sequence[int]) -> None:
        """Refuse tokens out of the vocabulary. The windows are still in host memory: no device is read."""
        limit = self.vocabulary or LIMIT
        least: Any = mx.min(windows, stream=mx.cpu).item()
        most: Any = mx.max(windows, stream=mx.cpu).item()
        if least >= 0 and most < limit:
            return
        listed: Any = windows.tolist()
        position, token = min(
            (start + offset, token)
            for start, row in zip(starts, listed, strict=True)
            for offset, token in enumerate(row)
            if not 0 <= token < limit
        )
        where = self.tokens.path if isinstance(self.tokens, TokenFile) else "tokens"
        name = "int32" if self.vocabulary is None else f"vocabulary={self.vocabulary}"
        raise checks.error(
            _CALLER,
            f"{where} must hold tokens in [0, {limit}) ({name}), got {token} at position {position}",
        )


class _Memory:
    """Tokens in memory, read like a file."""

    def __init__(self, tokens: Any):
        self._view, self._dtype = layouts.buffer(_CALLER, tokens)
        self._width = layouts.DTYPES[self._dtype].size

    def __len__(self) -> int:
        return len(self._view) // self._width

    def windows(self, starts: Sequence[int], length: int) -> mx.array:
        size = length * self._width
        data = b"".join([self._view[start * self._width :][:size] for start in starts])
        return layouts.array(data, self._dtype, (len(starts), length))
