"""Several sequences in one row: best-fit packing, with borders that no target crosses."""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import mlx.core as mx

from purestep._core import checks
from purestep._data.core.tokens import mask_of, sequences_of, token_of, tokens_of
from purestep._data.text import layouts
from purestep._data.text.examples import Example
from purestep._losses.tokens.packing import packed_loss_mask, packed_positions

LongSequence: TypeAlias = Literal["refuse", "split", "truncate"]
_LONG: tuple[LongSequence, ...] = get_args(LongSequence)
_CALLER = "pack"


class Packed(NamedTuple):
    """Packed sequences.

    Attributes:
        arrays: by name, all [rows, context]:

            - `inputs`, int32: the tokens of the sequences, one after the other, then padding;
            - `targets`, int32: the next token of the same sequence; padding where there is none;
            - `weights`, float32: 1 for targets to learn; 0 at the last token of a sequence, on padding, and
              where the mask of an example is 0;
            - `segments`, int32: the number of the sequence in its row, from 1; 0 on padding;
            - `positions`, int32: the position of the token in its sequence, from 0; 0 on padding.

        fill: the fraction of tokens that are not padding, in (0, 1].

    >>> sorted(pack([[5, 6, 7], [8, 9]], context=4).arrays)
    ['inputs', 'positions', 'segments', 'targets', 'weights']
    """

    arrays: dict[str, mx.array]
    fill: float


def pack(
    sequences: Iterable[Sequence[int] | Example],
    context: int,
    *,
    long: LongSequence = "refuse",
    padding: int = 0,
) -> Packed:
    """Pack sequences into rows of `context` tokens, as few rows as best-fit decreasing finds.

    The longest sequence comes first; each goes to the row in which it leaves the least space. Sequences are
    not divided, unless they are longer than a row. Time is O(n log n) in the number of sequences.

    Attention must not cross the borders: pass `ps.losses.packed_attention_mask(segments)` to the model, and
    `positions` to its position embedding. The rows are sorted by their longest sequence, so shuffle them:
    `ps.data.Batches(packed.arrays, ...)` does.

    Args:
        sequences: tokens, or examples with a mask, as `tokenize_records` returns them; none of them empty.
        context: tokens of a row, at least 2.
        long: what to do with a sequence of more than `context` tokens. "refuse" raises an error; "split"
            divides it into rows, whose first token is then no target; "truncate" drops the tokens at its end.
        padding: the token that fills rows, in [0, 2**31).

    Returns:
        The arrays and the fraction of each row that is used. All arrays are evaluated.

    Raises:
        ValueError: if a sequence is empty or too long, holds anything but tokens in [0, 2**31), or has a mask
            of another length or with numbers other than 0 and 1; or if there is no sequence.
        TypeError: if a sequence is a text or cannot be iterated.

    Reference: best-fit packing of documents, Ding et al., arXiv:2404.10830.

    >>> packed = pack([[5, 6, 7], [8, 9], [3]], context=4)
    >>> packed.arrays["inputs"]
    array([[5, 6, 7, 3],
           [8, 9, 0, 0]], dtype=int32)
    >>> packed.arrays["segments"]
    array([[1, 1, 1, 2],
           [1, 1, 0, 0]], dtype=int32)
    >>> packed.arrays["weights"]
    array([[1, 1, 0, 0],
           [1, 0, 0, 0]], dtype=float32)
    >>> packed.fill
    0.75
    """
    context = checks.integer(_CALLER, "context", context, least=2)
    padding = token_of(_CALLER, "padding", padding)
    checks.one_of(_CALLER, "long", long, _LONG)
    pieces = [
        piece
        for each in enumerate(sequences_of(_CALLER, sequences))
        for piece in _pieces(*each, context, long)
    ]
    if not pieces:
        raise checks.error(_CALLER, "sequences must hold at least one sequence, got none")
    rows = best_fit([len(piece.tokens) for piece in pieces], context)
    tokens, mask, segments = array("i"), bytearray(), array("i")
    for row in rows:
        for number, index in enumerate(row, 1):
            piece = pieces[index]
            tokens.extend(piece.tokens)
            mask.extend(piece.mask)
            segments.extend([number] * len(piece.tokens))
        missing = -len(tokens) % context
        tokens.extend([padding] * missing)
        mask.extend(bytes(missing))
        segments.extend([0] * missing)
    used = sum(len(piece.tokens) for piece in pieces)
    shape = (len(rows), context)
    arrays = _arrays(_array(tokens, shape), _array(mask, shape), _array(segments, shape), padding)
    return Packed(arrays, used / len(tokens))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items to as few bins as best-fit decreasing finds; return the items of each bin.

    >>> best_fit([3, 5, 4, 2], 7)
    [[1, 3], [2, 0]]
    """
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # the bins with a number of free places
    spaces: list[int] = []  # the numbers of free places that some bin has, ascending
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length = lengths[item]
        place = bisect_left(spaces, length)
        if place == len(spaces):
            chosen, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[place]
            chosen = by_space[space].pop()
            if not by_space[space]:
                del spaces[place]
        bins[chosen].append(item)
        left = space - length
        if left:
            if not by_space[left]:
                insort(spaces, left)
            by_space[left].append(chosen)
    return bins


def _pieces(
    number: int, sequence: Sequence[int] | Example, context: int, long: LongSequence
) -> Iterator[Example]:
    """Yield a sequence as examples that fit a row."""
    name = f"sequences[{number}]"
    tokens = tokens_of(_CALLER, name, getattr(sequence, "tokens", sequence))
    count, mask = len(tokens), getattr(sequence, "mask", None)
    if not count:
        raise checks.error(_CALLER, f"{name} must not be empty, got no tokens")
    bits = bytes([1]) * count if mask is None else mask_of(_CALLER, name, mask, count)
    if count > context and long == "refuse":
        raise checks.error(
            _CALLER,
            f"{name} must have at most context={context} tokens, got {count}; "
            'long="split" or long="truncate" accepts it',
        )
    if count > context and long == "truncate" and any(bits[1:]) and not any(bits[1:context]):
        raise checks.error(
            _CALLER,
            f"{name} must have a token to learn among its first context={context}, got none: nothing would "
            "be left to learn",
        )
    for start in range(0, count if long == "split" else 1, context):
        yield Example(tokens[start : start + context], bits[start : start + context])


def _array(values: Any, shape: tuple[int, ...]) -> mx.array:
    return layouts.array(memoryview(values), "uint8" if isinstance(values, bytearray) else "int32", shape)


def _arrays(tokens: mx.array, mask: mx.array, segments: mx.array, padding: int) -> dict[str, mx.array]:
    def before_last(values: mx.array, last: int) -> mx.array:
        return mx.concatenate([values, mx.full((values.shape[0], 1), last, values.dtype)], axis=1)

    same = packed_loss_mask(segments)
    arrays = {
        "inputs": tokens,
        "targets": before_last(mx.where(same > 0, tokens[:, 1:], padding), padding),
        "weights": before_last(same * mask[:, 1:], 0),
        "segments": segments,
        "positions": mx.where(segments > 0, packed_positions(segments), 0),
    }
    mx.eval(arrays)
    return arrays
