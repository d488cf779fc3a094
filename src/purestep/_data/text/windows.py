"""Tokens of a text, and batches of windows into it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import fold_in, from_seed
from purestep._core.types import Batch
from purestep._data.core.checking import step_of
from purestep._data.core.converting import array_of
from purestep._data.core.tokens import LIMIT


class Characters(NamedTuple):
    """A vocabulary: the characters of one text.

    Attributes:
        symbols: all characters, sorted; a token is a position in this string.
    """

    symbols: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """Collect the characters of a text.

        >>> Characters.of("banana").symbols
        'abn'
        """
        if not text:
            raise checks.error("Characters.of", "text must not be empty")
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> mx.array:
        """Return the tokens of a text, int32 [characters].

        Raises:
            ValueError: if a character is not in the vocabulary.

        >>> Characters("abn").encode("nab")
        array([2, 0, 1], dtype=int32)
        """
        index = {symbol: number for number, symbol in enumerate(self.symbols)}
        unknown = sorted(set(text) - index.keys())
        if unknown:
            raise checks.error(
                "Characters.encode",
                f"text must consist of characters of the vocabulary, got {''.join(unknown)[:20]!r}",
            )
        return mx.array([index[symbol] for symbol in text], mx.int32)

    def decode(self, tokens: mx.array) -> str:
        """Return the text of tokens [characters].

        Raises:
            ValueError: if a token is not in the vocabulary.

        >>> Characters("abn").decode(mx.array([2, 0, 1]))
        'nab'
        """
        numbers: Any = tokens.tolist()
        for number in numbers:
            if not 0 <= number < len(self.symbols):  # -1 would be the last symbol
                raise checks.error(
                    "Characters.decode", f"tokens must be in [0, {len(self.symbols)}), got {number}"
                )
        return "".join(self.symbols[number] for number in numbers)


@dataclass(frozen=True)
class RandomWindows:
    """A source of random windows into one long text.

    `at(step)` returns `{"inputs": int32 [batch, context], "targets": int32 [batch, context]}`; targets are
    the inputs one token later. The windows depend only on the seed and the step.

    Attributes:
        tokens: integer [length], longer than `context`, in [0, 2**31). An array of numpy is converted.
        batch_size: windows of a batch.
        context: tokens of a window.
        seed: seed of the random windows.

    >>> source = RandomWindows(mx.arange(100), batch_size=2, context=8)
    >>> batch = source.at(3)
    >>> mx.array_equal(batch["targets"], batch["inputs"] + 1)
    array(True, dtype=bool)
    """

    tokens: mx.array
    batch_size: int
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        caller = "RandomWindows"
        checks.integer(caller, "batch_size", self.batch_size, least=1)
        checks.integer(caller, "context", self.context, least=1)
        from_seed(caller, "seed", self.seed)
        tokens = _integers(caller, self.tokens)
        if tokens.ndim != 1 or tokens.size <= self.context:
            raise checks.error(
                caller,
                f"tokens must be [length] with more than context={self.context}, got {tokens.shape}",
            )
        least: Any = tokens.min().item()
        most: Any = tokens.max().item()
        if least < 0 or most >= LIMIT:
            found = least if least < 0 else most
            raise checks.error(caller, f"tokens must be in [0, 2**31), got {found}")
        tokens = tokens.astype(mx.int32)
        mx.eval(tokens)  # Another thread cannot evaluate lazy arrays that this one made.
        object.__setattr__(self, "tokens", tokens)

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        key = fold_in(from_seed("RandomWindows", "seed", self.seed), step_of("RandomWindows", step))
        starts = mx.random.randint(0, self.tokens.size - self.context, (self.batch_size, 1), key=key)
        windows = self.tokens[starts + mx.arange(self.context + 1)]
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


def consecutive_windows(
    tokens: mx.array, batch_size: int, context: int, ignore_index: int | None = None
) -> list[Batch]:
    """Split a text into batches for evaluation: every token but the first is a target exactly once.

    Args:
        tokens: integer [length], at least 2.
        batch_size: windows of a batch.
        context: tokens of a window.
        ignore_index: fills the targets after the end, so that all batches have one shape and a compiled
            step is traced once. It must not be a token of the text. Pass the same number to the loss, as in
            `cross_entropy(..., ignore_index=-100)`: by default losses ignore nothing. With `None` the rest
            of the text forms a batch with fewer windows, and one with a single, shorter window.

    Returns:
        Batches like those of `RandomWindows`, in the order of the text. Targets are int32, or int64 for
        tokens in uint32 or 64 bits.

    Raises:
        ValueError: if there are fewer than 2 tokens, or `ignore_index` is one of them.

    >>> [batch["targets"].tolist() for batch in consecutive_windows(mx.arange(6), 1, 3)]
    [[[1, 2, 3]], [[4, 5]]]
    >>> [batch["targets"].tolist() for batch in consecutive_windows(mx.arange(6), 1, 3, ignore_index=-100)]
    [[[1, 2, 3]], [[4, 5, -100]]]
    """
    caller = "consecutive_windows"
    batch_size = checks.integer(caller, "batch_size", batch_size, least=1)
    context = checks.integer(caller, "context", context, least=1)
    tokens = _integers(caller, tokens)
    if tokens.ndim != 1 or tokens.size < 2:
        raise checks.error(caller, f"tokens must be [length] of at least 2, got {tokens.shape}")
    wide = tokens.dtype in (mx.uint32, mx.int64, mx.uint64)
    inputs, targets = tokens[:-1], tokens[1:].astype(mx.int64 if wide else mx.int32)
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
        if bool((targets == ignore_index).any().item()):
            raise checks.error(caller, f"ignore_index must not be a token of the text, got {ignore_index}")
        missing = -targets.size % (batch_size * context)
        inputs = mx.concatenate([inputs, mx.zeros(missing, inputs.dtype)])
        targets = mx.concatenate([targets, mx.full(missing, ignore_index, targets.dtype)])
    batches, start = [], 0
    while start < targets.size:
        left = targets.size - start
        rows = min(batch_size, max(left // context, 1))
        end = start + rows * min(context, left)
        batch = {"inputs": inputs[start:end], "targets": targets[start:end]}
        batches.append({name: part.reshape(rows, -1) for name, part in batch.items()})
        start = end
    return batches


def _integers(caller: str, tokens: Any) -> mx.array:
    """Return an integer array of MLX or numpy as one of MLX."""
    if not hasattr(tokens, "dtype"):
        raise TypeError(f"{caller}: tokens must be an integer array, got {type(tokens).__name__}")
    found = tokens if isinstance(tokens, mx.array) else array_of(caller, "tokens", tokens)
    if not mx.issubdtype(found.dtype, mx.integer):
        raise TypeError(f"{caller}: tokens must be integers, got {found.dtype}")
    return found
