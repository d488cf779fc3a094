"""Packed rows."""

import random
from array import array
from collections import Counter
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from purestep import Mean
from purestep._data.text.packing import best_fit
from purestep.data import Example, Examples, pack
from purestep.losses import cross_entropy, packed_attention_mask


def documents(count, context, seed=0):
    """Return documents of log-normal lengths, whose tokens tell document and position."""
    lengths = np.random.default_rng(seed).lognormal(np.log(context / 5), 1, count)
    sizes = [min(max(int(length), 1), context) for length in lengths]
    return [[1000 * number + place + 1 for place in range(size)] for number, size in enumerate(sizes)]


def segments_of(packed):
    """Return the tokens of every segment of every row."""
    rows = zip(packed.arrays["inputs"].tolist(), packed.arrays["segments"].tolist(), strict=True)
    for tokens, segments in rows:
        for number in sorted(set(segments) - {0}):
            yield [token for token, segment in zip(tokens, segments, strict=True) if segment == number]


@pytest.mark.parametrize("context", [2, 16, 100])
def test_every_sequence_is_in_one_place_and_no_target_crosses_a_border(context):
    sequences = documents(200, context)
    packed = pack(sequences, context)
    assert sorted(segments_of(packed)) == sorted(sequences)
    flat = {name: np.array(array).flatten().tolist() for name, array in packed.arrays.items()}
    inputs, targets, weights, positions = (flat[n] for n in ("inputs", "targets", "weights", "positions"))
    learned = [(x, y) for x, y, w in zip(inputs, targets, weights, strict=True) if w]
    assert sorted(learned) == sorted(pair for each in sequences for pair in pairwise(each))
    assert all(y == 0 for y, w in zip(targets, weights, strict=True) if not w)
    assert [p for x, p in zip(inputs, positions, strict=True) if x] == [(x - 1) % 1000 for x in inputs if x]
    tokens = sum(map(len, sequences))
    assert packed.fill == tokens / len(inputs) == sum(map(bool, inputs)) / len(inputs)
    assert {array.shape for array in packed.arrays.values()} == {(len(inputs) // context, context)}


def test_rows_of_typical_documents_are_full():
    for context, seed in ((128, 0), (512, 1), (2048, 2)):
        lengths = [len(each) for each in documents(3000, context, seed)]
        rows = best_fit(lengths, context)
        assert sum(lengths) / (len(rows) * context) > 0.99
        assert max(sum(lengths[item] for item in row) for row in rows) <= context
        assert sorted(item for row in rows for item in row) == list(range(3000))


def test_bins_are_those_of_best_fit_decreasing_by_trial():
    for seed in range(50):
        choose = random.Random(seed)
        capacity = choose.randint(1, 30)
        lengths = [choose.randint(1, capacity) for _ in range(choose.randint(1, 60))]
        spaces: list[int] = []
        for length in sorted(lengths, reverse=True):
            fits = [space for space in spaces if space >= length]
            if fits:
                spaces.remove(min(fits))
            spaces.append((min(fits) if fits else capacity) - length)
        rows = best_fit(lengths, capacity)
        left = Counter(capacity - sum(lengths[item] for item in row) for row in rows)
        assert left == Counter(spaces)


def test_masks_stay_with_their_tokens():
    packed = pack([Example([5, 6, 7, 8], [0, 0, 1, 0]), Example([1, 2], b"\x01\x01")], context=7)
    assert packed.arrays["inputs"].tolist() == [[5, 6, 7, 8, 1, 2, 0]]
    assert packed.arrays["targets"].tolist() == [[6, 7, 8, 0, 2, 0, 0]]
    assert packed.arrays["weights"].tolist() == [[0, 1, 0, 0, 1, 0, 0]]


def test_long_sequences_are_refused_split_or_truncated():
    long = [list(range(1, 11)), [20]]
    with pytest.raises(ValueError, match=r"^pack: sequences\[0\] .*context=4 .*got 10; long="):
        pack(long, 4)
    assert sorted(segments_of(pack(long, 4, long="split"))) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [20]]
    assert sorted(segments_of(pack(long, 4, long="truncate"))) == [[1, 2, 3, 4], [20]]
    assert sorted(segments_of(pack([[1, 2], [3]], 4, long="truncate"))) == [[1, 2], [3]]


def test_a_packed_row_has_the_loss_of_its_sequences():
    """With the mask of attention and the positions, a sequence does not depend on its neighbours."""
    table, places = (mx.random.normal((rows, 8), key=mx.random.key(rows)) for rows in (30, 12))

    def loss(tokens, positions, mask, targets, weights=None):
        x = (table[tokens] + places[positions])[:, None]
        hidden = mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask=mask)[:, 0]
        return cross_entropy(hidden @ table.T, targets, weights=weights)

    choose = random.Random(0)
    sequences = [[choose.randrange(1, 30) for _ in range(choose.randint(2, 12))] for _ in range(12)]
    arrays = pack(sequences, 12).arrays
    mask = packed_attention_mask(arrays["segments"])
    together = loss(arrays["inputs"], arrays["positions"], mask, arrays["targets"], arrays["weights"])
    alone = Mean.merge(
        *(
            loss(mx.array([s[:-1]]), mx.arange(len(s) - 1)[None], "causal", mx.array([s[1:]]))
            for s in sequences
        )
    )
    assert together.weight.item() == alone.weight.item()
    assert together.value.item() == pytest.approx(alone.value.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([], {}, "sequences .*one sequence, got none"),
        ([[1], []], {}, r"sequences\[1\] .*empty"),
        (
            [[1], [2, -(2**40)]],
            {},
            r"sequences\[1\] .*tokens .*, got -1099511627776 at position 1",
        ),
        ([[1], [2, -100]], {}, r"sequences\[1\] .*tokens .*, got -100 at position 1"),
        ([[1], [2, 0.5]], {}, r"sequences\[1\] .*tokens .*, got 0.5 at position 1"),
        ([mx.zeros((2, 2), mx.int32)], {}, r"sequences\[0\] .*tokens .*, got .* at position 0"),
        (Examples([], 0, 0), {}, "sequences .*list .*got Examples; .*examples"),
        ({}, {}, "sequences .*got dict"),
        (["ab"], {}, r"sequences\[0\] .*sequence .*got a str"),
        (
            [Example([1, 2], [1])],
            {},
            r"sequences\[0\]\.mask .* 2 tokens, got 1",
        ),
        ([Example([1, 2], [1, 0.2])], {}, r"sequences\[0\]\.mask .*0 and 1 .*got 0.2"),
        (
            [Example(list(range(9)), [0] * 8 + [1])],
            {"long": "truncate"},
            r"sequences\[0\] .*token to learn .*context=8, got none",
        ),
        ([[1]], {"padding": 2**31}, r"padding .* 2\*\*31, got 2147483648"),
        ([[1]], {"context": 1}, "context .* 2, got 1"),
        ([[1]], {"long": "cut"}, "long .* refuse, split, truncate, got 'cut'"),
    ],
)
def test_bad_sequences_are_refused(sequences, options, message):
    with pytest.raises((ValueError, TypeError), match=f"^pack: {message}"):
        pack(sequences, **{"context": 8, **options})


def test_arrays_of_tokens_are_sequences_too():
    packed = pack([mx.array([1, 2, 3]), np.array([4, 5]), b"\x06", array("H", [7])], 7)
    assert packed.arrays["inputs"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
