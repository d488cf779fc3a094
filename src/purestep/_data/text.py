"""Text as tokens, and batches of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import fold_in, from_seed
from purestep._core.types import Batch


class Characters(NamedTuple):
    """A vocabulary of the characters of one text.

    Attributes:
        symbols: every character, sorted; a token is a position in this string.
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
            ValueError: for a character that the vocabulary lacks.

        >>> Characters("abn").encode("nab")
        array([2, 0, 1], dtype=int32)
        """
        index = {symbol: number for number, symbol in enumerate(self.symbols)}
        unknown = sorted(set(text) - index.keys())
        if unknown:
            raise checks.error("Characters.encode", f"the vocabulary lacks {''.join(unknown)[:20]!r}")
        return mx.array([index[symbol] for symbol in text], mx.int32)

    def decode(self, tokens: mx.array) -> str:
        """Return the text of tokens [characters]."""
        numbers: Any = tokens.tolist()
        return "".join(self.symbols[number] for number in numbers)


@dataclass(frozen=True)
class RandomWindows:
    """A source of random windows into one long text.

    `at(step)` gives `{"inputs": int32 [batch, context], "targets": int32 [batch, context]}`, the targets
    one token later. The windows are drawn from a key made of the seed and the step, and nothing else.

    Attributes:
        tokens: int32 [length], more than `context` of them.
        batch_size: windows a batch.
        context: tokens a window.
        seed: makes the draws of this source.

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
        if self.tokens.ndim != 1 or self.tokens.size <= self.context:
            raise checks.error(
                caller,
                f"tokens must be [length] with more than context={self.context}, got {self.tokens.shape}",
            )

    def at(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0."""
        key = fold_in(from_seed("RandomWindows", "seed", self.seed), step)
        starts = mx.random.randint(0, self.tokens.size - self.context, (self.batch_size, 1), key=key)
        windows = self.tokens[starts + mx.arange(self.context + 1)]
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


def consecutive_windows(
    tokens: mx.array, batch_size: int, context: int, ignore_index: int | None = None
) -> list[Batch]:
    """Cut a text into batches in which every token but the first is a target exactly once: for evaluation.

    Args:
        tokens: integer [length], at least 2.
        batch_size: windows a batch.
        context: tokens a window.
        ignore_index: fills the targets after the end, so that all batches have one shape, which a compiled
            step traces once. Pass the same to the loss, `cross_entropy(..., ignore_index=-100)`: by default
            losses ignore nothing. Not a token of the text. `None` fills nothing: what is left after the last
            whole batch is one with fewer windows, and one with a single, shorter window.

    Returns:
        Batches as `RandomWindows` gives them, in the order of the text. Targets are signed: int32, or int64
        for tokens of uint32 and 64 bits.

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
