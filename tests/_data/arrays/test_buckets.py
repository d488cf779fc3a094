"""`LengthBuckets`: every sequence once an epoch, few shapes, the least padding that exists."""

import itertools
import math
import random
from collections import Counter

import pytest

import purestep as ps
from purestep._data.arrays.buckets import bounds_of
from purestep.data import Example, Examples, LengthBuckets


def lengths_of(sigma, count=3000):
    generator = random.Random(0)
    return [max(2, int(generator.lognormvariate(5.0, sigma))) for _ in range(count)]


def sequences_of(lengths):
    """Return sequences whose tokens tell their number and place: number * 10,000 + place."""
    return [[10_000 * number + place for place in range(length)] for number, length in enumerate(lengths)]


def test_every_sequence_comes_whole_once_an_epoch_in_few_shapes():
    sequences = sequences_of(lengths_of(0.5, 300))
    source = LengthBuckets(sequences, 2048, seed=1)
    assert len(source.shapes) <= 8
    assert all(rows * length <= 2048 for rows, length in source.shapes)
    orders = []
    for epoch in range(2):
        seen, real, positions = [], 0, 0
        for step in range(epoch * len(source), (epoch + 1) * len(source)):
            batch = source.at(step)
            assert batch["inputs"].shape in source.shapes
            positions += batch["inputs"].size
            rows = zip(*(batch[name].tolist() for name in ("inputs", "targets", "weights")), strict=True)
            for inputs, targets, weights in rows:
                count = int(sum(weights))
                real += count
                if count:
                    number = inputs[0] // 10_000
                    assert inputs[:count] == sequences[number][:-1]
                    assert targets[:count] == sequences[number][1:]
                    assert weights == [1.0] * count + [0.0] * (len(weights) - count)
                    seen.append(number)
        assert sorted(seen) == list(range(300))
        assert source.padding == pytest.approx(1 - real / positions)
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_batch_is_a_function_of_the_step():
    sequences = sequences_of(lengths_of(0.5, 100))
    late = LengthBuckets(sequences, 1024, seed=3).at(777)
    source = LengthBuckets(sequences, 1024, seed=3)
    source.at(5)
    assert source.at(777)["inputs"].tolist() == late["inputs"].tolist()


def test_bounds_have_the_least_padding():
    """Against every choice of bounds."""
    generator = random.Random(1)
    for _ in range(20):
        lengths = [generator.randint(1, 12) for _ in range(15)]
        for most in (1, 2, 3):

            def positions(bounds, lengths=lengths):
                return sum(min(bound for bound in bounds if bound >= length) for length in lengths)

            choices = itertools.combinations_with_replacement(sorted(set(lengths)), most)
            least = min(positions(choice) for choice in choices if max(choice) >= max(lengths))
            assert positions(bounds_of(lengths, most)) == least


def least_positions(lengths, most):
    """Return the least positions that `most` lengths allow: every start of every bucket is tried."""
    counts = sorted(Counter(lengths).items())
    ends = list(itertools.accumulate((count for _, count in counts), initial=0))
    least = [0] + [math.inf] * len(counts)
    for _ in range(most):
        least = [0] + [
            min(least[start] + (ends[end] - ends[start]) * counts[end - 1][0] for start in range(end))
            for end in range(1, len(counts) + 1)
        ]
    return least[-1]


@pytest.mark.parametrize(("sigma", "most"), [(1.0, 8), (1.5, 32), (0.5, 3)])
def test_bounds_have_the_least_padding_among_many_lengths(sigma, most):
    generator = random.Random(2)
    lengths = [int(generator.lognormvariate(7.0, sigma)) + 1 for _ in range(700)]
    assert len(set(lengths)) > 400
    bounds = bounds_of(lengths, most)
    assert bounds == sorted(set(bounds))
    assert len(bounds) <= most
    found = sum(min(bound for bound in bounds if bound >= length) for length in lengths)
    assert found == least_positions(lengths, most)


@pytest.mark.parametrize(("sigma", "most"), [(0.15, 0.05), (0.3, 0.09), (0.5, 0.14)])
def test_padding_of_log_normal_lengths(sigma, most):
    """Eight shapes cannot do better: the bounds are optimal. One row may hold several sequences: `pack`."""
    sequences = [[0] * (length + 1) for length in lengths_of(sigma)]
    assert LengthBuckets(sequences, 16_384).padding < most
    assert ps.data.pack(sequences, 1024, long="truncate").fill > 0.95


def test_masks_of_examples_become_weights():
    source = LengthBuckets([Example([1, 2, 3, 4], [0, 0, 1, 1])], 8)
    assert source.at(0)["weights"].tolist() == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([], {}, "one sequence, got none"),
        ([[1, 2], [1]], {}, r"sequences\[1\] .*two tokens"),
        ([[1] * 20], {}, "tokens_per_batch .*longest .* 19, got 16"),
        ([[1, 2]], {"max_shapes": 0}, "max_shapes.*0"),
        ([[1, 2]], {"seed": -1}, "seed.*-1"),
        ([[1, 2]], {"pad_token": -1}, "pad_token .* 0, got -1"),
        (
            [[1, 2], Example([1, 2, 3], [1, 1])],
            {},
            r"sequences\[1\]\.mask .* 3 tokens, got 2",
        ),
        ([Example([1, 2], [1, 1, 1])], {}, r"sequences\[0\]\.mask .* 2 tokens, got 3"),
        (
            [Example([1, 2], [1, 0.5])],
            {},
            r"sequences\[0\]\.mask .*0 and 1 .*got 0.5 at position 1",
        ),
        ([Example([1, 2], b"\1\7")], {}, r"sequences\[0\]\.mask .*0 and 1 .*got 7"),
        ([[1, 2], [3, -100]], {}, r"sequences\[1\] .*tokens .*, got -100 at position 1"),
        ([[1, 2.5]], {}, r"sequences\[0\] .*tokens .*, got 2.5 at position 1"),
        ([[1, 2**31]], {}, r"sequences\[0\] .*tokens .*, got 2147483648 at position 1"),
        (
            [([1, 2, 3], [0, 1, 1])],
            {},
            r"sequences\[0\] .*tokens .*, got \[1, 2, 3\] at position 0",
        ),
        (["ab"], {}, r"sequences\[0\] .*sequence .*got a str"),
        (
            Examples([Example([1, 2], [1, 1])], 0, 0),
            {},
            "sequences .*got Examples; .*examples",
        ),
        ((row for row in [[1, 2]]), {}, "sequences .*list .*got generator"),
        ("ab", {}, "sequences .*got str"),
        ([Example([1, 2], 1)], {}, r"sequences\[0\]\.mask .*sequence .*got int"),
        ([7], {}, r"sequences\[0\] .*sequence .*got int"),
    ],
)
def test_wrong_arguments_are_refused(sequences, options, message):
    with pytest.raises((ValueError, TypeError), match=f"LengthBuckets: .*{message}"):
        LengthBuckets(sequences, 16, **options)


def test_sequences_that_change_later_are_refused():
    sequences = [[1, 2, 3], [4, 5]]
    source = LengthBuckets(sequences, 8, max_shapes=1)
    sequences[0].append(9)
    with pytest.raises(ValueError, match=r"LengthBuckets: sequences\[0\] .* 3 tokens, got 4"):
        source.at(0)
    with pytest.raises(ValueError, match=r"LengthBuckets.at: step .* 0, got -1"):
        source.at(-1)
