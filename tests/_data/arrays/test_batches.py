"""`Batches`: every row once an epoch, found by the step, whole over ranks."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.data import Batches

ROWS = 103


def rows_of(source, steps):
    return [row for step in steps for row in source.at(step)["x"].tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_an_epoch(shuffle):
    source = Batches({"x": mx.arange(ROWS)}, 8, shuffle=shuffle)
    assert len(source) == 12
    for epoch in range(3):
        seen = rows_of(source, range(epoch * 12, epoch * 12 + 12))
        assert len(seen) == len(set(seen)) == 96
    assert (rows_of(source, range(12)) == rows_of(source, range(12, 24))) is not shuffle


def test_a_batch_is_a_function_of_the_seed_and_the_step():
    source, other = (Batches({"x": mx.arange(ROWS)}, 8, seed=seed) for seed in (1, 2))
    late = source.at(1000)["x"].tolist()
    rows_of(source, range(5))
    assert source.at(1000)["x"].tolist() == late
    assert Batches({"x": mx.arange(ROWS)}, 8, seed=1).at(1000)["x"].tolist() == late
    assert other.at(1000)["x"].tolist() != late


def test_padding_has_weights_and_every_row_once():
    source = Batches({"x": mx.arange(ROWS)}, 8, remainder="pad")
    assert len(source) == 13
    batches = [source.at(step) for step in range(13)]
    assert {batch["weights"].shape for batch in batches} == {(8,)}
    real = [
        row
        for batch in batches
        for row, weight in zip(batch["x"].tolist(), batch["weights"].tolist(), strict=True)
        if weight
    ]
    assert sorted(real) == list(range(ROWS))
    assert sum(float(batch["weights"].sum().item()) for batch in batches) == ROWS


def test_padding_may_be_longer_than_the_data():
    batch = Batches({"x": mx.arange(3)}, 8, remainder="pad", shuffle=False).at(0)
    assert batch["x"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert batch["weights"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_wrapping_cuts_batches_from_one_row_of_epochs():
    source = Batches({"x": mx.arange(ROWS)}, 8, remainder="wrap")
    seen = rows_of(source, range(103))  # 8 epochs
    for epoch in range(8):
        assert sorted(seen[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))


@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
def test_ranks_share_each_batch(remainder):
    whole = Batches({"x": mx.arange(ROWS)}, 12, remainder=remainder)
    parts = [
        Batches({"x": mx.arange(ROWS)}, 12, remainder=remainder, rank=rank, world=3) for rank in range(3)
    ]
    for step in (0, 8, 20):
        for name in whole.at(step):
            joined = [row for part in parts for row in part.at(step)[name].tolist()]
            assert joined == whole.at(step)[name].tolist()
        assert len(parts[0]) == len(whole)


class Pair(NamedTuple):
    left: object
    right: object


def test_arrays_of_every_kind_give_the_same_rows(tmp_path):
    values = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    mapped = np.memmap(tmp_path / "a.bin", np.float32, "w+", shape=values.shape)
    mapped[:] = values
    tree = {"mlx": mx.array(values), "pair": Pair(values, mapped), "rows": values.tolist(), "list": [values]}
    batch = Batches(tree, 8).at(3)
    for found in (batch["mlx"], batch["pair"].left, batch["pair"].right, batch["rows"], batch["list"][0]):
        assert isinstance(found, mx.array)
        assert mx.array_equal(found, batch["mlx"])
    assert isinstance(batch["pair"], Pair)


def test_dtypes_are_those_of_mlx():
    arrays = {name: np.zeros(4, name) for name in ("float64", "int64", "uint8", "bool")}
    batch = Batches(arrays, 2).at(0)
    assert [str(batch[name].dtype).split(".")[-1] for name in arrays] == ["float32", "int64", "uint8", "bool"]


def test_a_resumed_fit_sees_the_same_batches(tmp_path):
    source = Batches({"x": np.arange(ROWS, dtype=np.float32)}, 8)
    transform = ps.optimizers.sgd(1e-3)
    step = ps.train_step(lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean(), transform)
    start = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    whole = ps.fit(step, start, source, epochs=2)
    assert whole.steps == 24
    for steps in (7, 24):
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            result = ps.fit(step, start, source, steps=steps, checkpointer=checkpointer)
    assert mx.array_equal(result.state.params["w"], whole.state.params["w"])
    other = Batches({"x": np.arange(ROWS, dtype=np.float32)}, 8, seed=1)
    with (
        ps.checkpoint.Checkpointer(tmp_path) as checkpointer,
        pytest.raises(ValueError, match="^fit: source .*step 0 .*step 24.*same_data=False"),
    ):
        ps.fit(step, start, other, steps=30, checkpointer=checkpointer)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": mx.arange(3), "y": mx.arange(4)}, {}, "rows: x has 3, y has 4"),
        ({}, {}, "one array, got none"),
        ({"x": mx.zeros((0, 2))}, {}, "one row, got 0"),
        ({"x": mx.array(1.0)}, {}, "x .*first axis .*0-d"),
        ({"x": 3}, {}, "x .*sequence, got 3"),
        ({"x": mx.arange(3)}, {"batch_size": 4}, "batch_size .*3 rows .*got 4"),
        ({"x": mx.arange(3)}, {"batch_size": 0}, "batch_size.*0"),
        ({"x": mx.arange(3)}, {"seed": -1}, "seed.*-1"),
        ({"x": mx.arange(3)}, {"remainder": "keep"}, "remainder.*keep"),
        (
            {"x": mx.arange(3)},
            {"world": 2, "batch_size": 3},
            "batch_size .*world=2, got 3",
        ),
        ({"x": mx.arange(3)}, {"world": 2, "rank": 2}, "rank .*world=2, got 2"),
        ({"weights": mx.arange(3)}, {"remainder": "pad"}, "arrays .*'weights' .*remainder='pad'"),
    ],
)
def test_wrong_arguments_are_refused(arrays, options, message):
    with pytest.raises((ValueError, TypeError), match=f"Batches: .*{message}"):
        Batches(arrays, **{"batch_size": 2, **options})


def test_map_changes_batches_and_keys_follow_the_step():
    source = ps.data.map(
        Batches({"x": mx.arange(8)}, 2, shuffle=False), lambda batch: {"x": batch["x"] + 100}
    )
    assert source.at(2)["x"].tolist() == [104, 105]
    assert len(source) == 4
    noisy = ps.data.map(source, lambda batch, key: {"x": mx.random.uniform(shape=(2,), key=key)}, seed=3)
    first = noisy.at(5)["x"].tolist()
    assert noisy.at(6)["x"].tolist() != first
    assert noisy.at(5)["x"].tolist() == first
    passes = ps.data.map([{"x": mx.array(1)}], lambda batch: {"x": batch["x"] + 1})
    assert [[int(batch["x"].item()) for batch in passes] for _ in range(2)] == [[2], [2]]
    with pytest.raises(ValueError, match="map: source .* at\\(step\\) .*seed"):
        ps.data.map([{"x": mx.array(1)}], lambda batch, key: batch, seed=1)
    with pytest.raises(ValueError, match="map: source .*not be an iterator"):
        ps.data.map(iter([]), lambda batch: batch)
