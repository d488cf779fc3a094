"""Mixtures, stages and curricula: functions of the step, in exact proportions."""

from collections import Counter

import mlx.core as mx
import pytest

import purestep as ps
from purestep.data import Batches, Mixture, Stages, difficulty_curriculum, length_curriculum


class Telling:
    """A source whose batch is its name and the step that was asked for."""

    def __init__(self, name):
        self.name = name

    def at(self, step):
        return self.name, step


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
        ([3], [1], {}, r"sources\[0\] .*at\(step\)"),
        ([Telling("a")], [1, 2], {}, "weights .* 1, got 2"),
        ([Telling("a")], [0], {}, "weights .*not all be 0"),
        ([Telling("a")], [-1], {}, r"weights\[0\].*-1"),
        ([Telling("a"), Telling("b")], [1, 1000], {}, r"weights\[0\]=1 gives no batch .*100"),
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
        ([(0, 5)], r"stages\[0\] .*source .*at\(step\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"Stages: .*{message}"):
            Stages(stages)


def test_lengths_grow_in_stages_of_about_equal_tokens():
    source = length_curriculum(mx.arange(60_000), 8, steps=400)
    shapes = [source.at(step)["inputs"].shape for step in range(0, 600, 50)]
    assert [length for _, length in shapes] == [32, 32, 80, 80, 200, 200, *[512] * 6]
    assert all(0.85 < rows * length / 4096 <= 1 for rows, length in shapes)


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
        ([float("nan")] * 20, {}, "difficulty .*not be NaN"),
        (list(range(20)), {"warmup_fraction": 0.0}, "warmup_fraction.*0"),
        (list(range(20)), {"easiest": 1.5}, "easiest.*1.5"),
    ],
)
def test_wrong_difficulties_are_refused(difficulty, options, message):
    with pytest.raises(ValueError, match=f"difficulty_curriculum: .*{message}"):
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
