"""Mixtures, stages and curricula: functions of the step, in exact proportions."""

from collections import Counter
from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._data.curricula.mixing import Shares
from purestep.data import Batches, Mixture, Stages, difficulty_curriculum, length_curriculum


class Telling:
    """A source whose batch is its name and the step that was asked for."""

    def __init__(self, name):
        self.name = name

    def at(self, step):
        return self.name, step


class OnPolicy:
    """A source of batches that are sampled from the state."""

    on_policy = True

    def at(self, state):
        raise AssertionError


class Empty(Telling):
    """A source without batches."""

    def __init__(self):
        super().__init__("empty")

    def __len__(self):
        return 0


def test_a_mixture_has_exact_proportions_and_uses_every_batch_once():
    mixture = Mixture([Telling("a"), Telling("b"), Telling("c")], [5, 3, 2], block=10, seed=4)
    seen = [mixture.at(step) for step in range(1000)]
    for block in range(100):
        counts = Counter(name for name, _ in seen[10 * block : 10 * block + 10])
        assert counts == {"a": 5, "b": 3, "c": 2}
    for name, count in (("a", 500), ("b", 300), ("c", 200)):
        assert sorted(step for n, step in seen if n == name) == list(range(count))
    assert mixture.at(777) == seen[777]
    assert [name for name, _ in seen[:10]] != [name for name, _ in seen[10:20]]


WEIGHTS = [
    ([1, 1, 1], 100),
    ([1, 1, 1], 10),
    ([1, 1, 1, 1, 1, 1, 1], 10),
    ([0.7, 0.2, 0.1], 10),
    ([1 / 6, 5 / 6], 6),
    ([0.335, 0.5, 0.165], 100),
    ([3.3, 0, 1.7, 2.9, 0.00001], 1_000_000),
    ([2.5, 1.1, 1.1, 1.3], 6),
    ([1e-9, 3e-9], 8),
]


@pytest.mark.parametrize(("weights", "block"), WEIGHTS)
def test_proportions_of_a_mixture_do_not_drift(weights, block):
    """Against the exact share of each source in all blocks so far; 33 of 100 for ever is not one third."""
    shares = [Fraction(weight).limit_denominator(10**12) * block for weight in weights]
    shares = [share * block / sum(shares) for share in shares]
    found = Shares.of(weights, len(weights), block)
    before = [0] * len(weights)
    for blocks in [*range(1, 200), 10**9]:
        counts = found.counts(blocks)
        assert sum(counts) == blocks * block
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - blocks * share) < 1 + Fraction(blocks, 10**11)
        if blocks < 200:
            own = [late - early for early, late in zip(before, counts, strict=True)]
            for each, share in zip(own, shares, strict=True):
                assert each >= 0
                assert abs(each - share) < 2
                assert share.denominator > 1 or each == share
        before = counts


@pytest.mark.parametrize(("weights", "block"), [([1, 1, 1], 10), ([2.5, 1.1, 0, 1.1, 1.3], 6)])
def test_every_batch_of_every_source_of_a_mixture_comes_once(weights, block):
    mixture = Mixture([Telling(number) for number in range(len(weights))], weights, block=block, seed=7)
    seen = [mixture.at(step) for step in range(40 * block)]
    for number in range(len(weights)):
        own = sorted(step for source, step in seen if source == number)
        assert own == list(range(len(own)))
        assert abs(len(own) - 40 * block * weights[number] / sum(weights)) < 1
    again = Mixture([Telling(number) for number in range(len(weights))], weights, block=block, seed=7)
    assert again.at(np.int32(33 * block + 1)) == seen[33 * block + 1]
    with pytest.raises(ValueError, match="Mixture.at: step .* 0, got -1"):
        again.at(-1)


def test_stages_of_a_mixture_continue_its_sources():
    stages = [(0, [1, 1, 1]), (70, [0, 2, 1]), (140, [1, 0, 0])]
    mixture = Mixture([Telling(number) for number in range(3)], stages, block=10)
    seen = [mixture.at(step) for step in range(300)]
    for number in range(3):
        own = sorted(step for source, step in seen if source == number)
        assert own == list(range(len(own)))
    assert {source for source, _ in seen[70:140]} == {1, 2}
    assert {source for source, _ in seen[140:]} == {0}
    counts = Counter(source for source, _ in seen[70:140])
    assert abs(counts[1] - 140 / 3) < 1


def test_weights_of_a_mixture_may_come_in_stages():
    mixture = Mixture([Telling("a"), Telling("b")], [(0, [1, 0]), (20, [1, 1]), (40, [0, 1])], block=10)
    seen = [mixture.at(step) for step in range(60)]
    assert Counter(name for name, _ in seen[:20]) == {"a": 20}
    assert Counter(name for name, _ in seen[20:40]) == {"a": 10, "b": 10}
    assert Counter(name for name, _ in seen[40:]) == {"b": 20}
    for name, count in (("a", 30), ("b", 30)):
        assert sorted(step for n, step in seen if n == name) == list(range(count))


@pytest.mark.parametrize(
    ("sources", "weights", "options", "message"),
    [
        ([], [], {}, "sources .*one source, got none"),
        ([3], [1], {}, r"sources\[0\] .*at\(step\), got int"),
        ([Telling("a")], [1, 2], {}, "weights .* 1, got 2"),
        ([Telling("a")], [0], {}, "weights .*not all be 0"),
        ([Telling("a")], [-1], {}, r"weights\[0\].*-1"),
        (
            [Telling("a"), Telling("b")],
            [1, 1000],
            {},
            r"weights\[0\]=1 .*block .* 1001",
        ),
        ([Telling("a")] * 2, [1e-12, 1], {}, r"weights\[0\]=1e-12 .*one batch"),
        ([Telling("a")], [float("nan")], {}, r"weights\[0\] .*finite, got nan"),
        ([Telling("a")], [mx.array(1.0)], {}, r"weights\[0\] .*Python number"),
        ([Telling("a")], 1, {}, "weights .*sequence .*got 1"),
        ([Telling("a")], [(0, [1]), 7], {}, "weights .*pairs .* got 7"),
        ([mx.array([1])], [1], {}, r"sources\[0\] .*at\(step\), got array"),
        ([OnPolicy()], [1], {}, r"sources\[0\] .*at\(step\), got an on-policy"),
        ([Empty()], [1], {}, r"sources\[0\] .*one batch"),
        ([Telling("a")], [(0, [1]), (50, [1])], {}, "stages .*block=100, got 50"),
        ([Telling("a")], [(100, [1])], {}, "stages .*begin at 0 .*got 100"),
    ],
)
def test_wrong_mixtures_are_refused(sources, weights, options, message):
    with pytest.raises((ValueError, TypeError), match=f"Mixture: .*{message}"):
        Mixture(sources, weights, **options)


def test_stages_follow_one_another():
    source = Stages([(0, Telling("a")), (3, Telling("b")), (5, Telling("c"))])
    assert [source.at(step) for step in range(7)] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0), ("c", 1),
    ]  # fmt: skip
    for stages, message in (
        ([], "stages .*one stage, got none"),
        ([(1, Telling("a"))], r"stages\[0\] .*step 0, got 1"),
        ([(0, Telling("a")), (0, Telling("b"))], r"stages\[1\] .*above 0, got 0"),
        ([(0, 5)], r"source .*stages\[0\] .*at\(step\), got int"),
        ([(0, OnPolicy())], r"source .*stages\[0\] .*on-policy"),
        ([(0, Empty())], r"source .*stages\[0\] .*one batch"),
        ([Telling("a")], r"stages\[0\] .*pair .*step .*source"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"Stages: .*{message}"):
            Stages(stages)


def test_lengths_grow_in_stages_of_about_equal_tokens():
    source = length_curriculum(mx.arange(60_000), 8, steps=400)
    shapes = [source.at(step)["inputs"].shape for step in range(0, 600, 50)]
    assert [length for _, length in shapes] == [32, 32, 80, 80, 200, 200, *[512] * 6]
    assert all(0.85 < rows * length / 4096 <= 1 for rows, length in shapes)


@pytest.mark.parametrize(
    ("shortest", "longest", "stages"),
    [(9, 10, 4), (12, 13, 3), (15, 16, 2), (8, 100, 6), (60, 62, 5), (33, 513, 3)],
)
def test_lengths_never_fall_and_end_at_the_longest(shortest, longest, stages):
    source = length_curriculum(
        mx.arange(20_000), 2, steps=stages, shortest=shortest, longest=longest, stages=stages
    )
    lengths = [source.at(step)["inputs"].shape[1] for step in range(stages + 1)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-2], lengths[-1]) == (shortest, longest, longest)
    assert all(length % 8 == 0 for length in lengths if shortest < length < longest)


def test_ranks_share_the_batches_of_every_stage():
    tokens, options = mx.arange(60_000), {"steps": 40, "longest": 96, "seed": 5}
    for world in (1, 2, 3, 6):
        parts = [length_curriculum(tokens, 6, **options, rank=rank, world=world) for rank in range(world)]
        for step in (0, 12, 25, 39, 80):
            batches = [part.at(step)["inputs"] for part in parts]
            starts = [start for batch in batches for start in batch[:, 0].tolist()]
            assert len({batch.shape for batch in batches}) == 1
            assert len(set(starts)) == len(starts)
            length = batches[0].shape[1]
            assert 0 <= 6 * 96 - len(starts) * length < length * world
    with pytest.raises(ValueError, match="length_curriculum: batch_size .*world=4"):
        length_curriculum(tokens, 6, **options, world=4)


def test_a_stage_without_data_is_refused():
    with pytest.raises(ValueError, match="length_curriculum: stage 1 of 4 .*TokenWindows: .*batch_size=64"):
        length_curriculum(mx.arange(2000), 4, steps=400)
    with pytest.raises(
        ValueError, match="difficulty_curriculum: the first stage .* 8 rows.*easiest=0.2 .*20 rows"
    ):
        difficulty_curriculum({"x": mx.arange(20)}, list(range(20)), 8, steps=100)


def test_difficulty_grows_to_all_rows():
    rows = 200
    difficulty = [(7 * number) % rows for number in range(rows)]  # a permutation
    source = difficulty_curriculum({"x": mx.arange(rows)}, difficulty, 10, steps=100, seed=2)
    for step in (0, 10, 25, 49):
        chosen = source.at(step)["x"].tolist()
        assert len(set(chosen)) == 10
        assert max(difficulty[row] for row in chosen) < source.pool(step)
    assert [source.pool(step) for step in (0, 25, 50, 80)] == [40, 120, 200, 200]
    whole = Batches({"x": mx.arange(rows)}, 10, seed=2)
    assert source.at(63)["x"].tolist() == whole.at(13)["x"].tolist()
    parts = [
        difficulty_curriculum({"x": mx.arange(rows)}, difficulty, 10, steps=100, seed=2, rank=r, world=2)
        for r in range(2)
    ]
    assert [row for part in parts for row in part.at(10)["x"].tolist()] == source.at(10)["x"].tolist()


@pytest.mark.parametrize(
    ("difficulty", "options", "message"),
    [
        ([1.0], {}, "difficulty .* 20, got 1"),
        ([*[0.0] * 7, float("nan"), *[0.0] * 12], {}, "difficulty .*NaN, .*row 7"),
        (["1"] * 20, {}, "difficulty .*numbers, got '1' in row 0"),
        ([[1.0]] * 20, {}, r"difficulty .*numbers, got \[1.0\] in row 0"),
        (3, {}, "difficulty .*sequence, got 3"),
        (list(range(20)), {"warmup_fraction": 0.0}, "warmup_fraction.*0"),
        (list(range(20)), {"easiest": 1.5}, "easiest.*1.5"),
    ],
)
def test_wrong_difficulties_are_refused(difficulty, options, message):
    with pytest.raises((ValueError, TypeError), match=f"difficulty_curriculum: .*{message}"):
        difficulty_curriculum({"x": mx.arange(20)}, difficulty, 2, steps=10, **options)


def test_a_resumed_run_on_a_mixture_equals_an_uninterrupted_one(tmp_path):
    source = Mixture([Batches({"x": mx.arange(40.0)}, 4, seed=s) for s in range(2)], [1, 3], block=4)
    transform = ps.optimizers.sgd(1e-3)
    step = ps.train_step(lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean(), transform)
    start = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    whole = ps.fit(step, start, source, steps=30)
    for steps in (11, 30):
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            result = ps.fit(step, start, source, steps=steps, checkpointer=checkpointer)
    assert mx.array_equal(result.state.params["w"], whole.state.params["w"])
