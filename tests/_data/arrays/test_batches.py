"""`Batches`: every row once an epoch, found by the step, whole over ranks."""

import math
import os
import subprocess
import sys
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
    for source in ({"x": mx.array(1)}, mx.arange(3), 5):
        with pytest.raises(TypeError, match="map: source .*iterable"):
            ps.data.map(source, lambda batch: batch)
    with pytest.raises(TypeError, match="map: function .*batch, got None"):
        ps.data.map(Batches({"x": mx.arange(8)}, 2), lambda batch: None).at(0)


class Kept:
    """A source that returns one and the same batch."""

    def __init__(self, batch):
        self.batch = batch

    def at(self, step):
        return self.batch


def test_a_function_that_changes_its_batch_does_not_change_the_source():
    def changing(batch):
        batch["x"] += 1
        batch["x"][0] = 7
        batch["pair"][0] += 1
        batch["new"] = batch.pop("y")
        return batch

    def fresh():
        return {"x": mx.array([1, 2]), "y": mx.array(0), "pair": [np.array([1]), mx.array(5)]}

    batch = fresh()
    for source in (Kept(batch), [batch]):
        mapped = ps.data.map(source, changing)
        for _ in range(2):
            found = mapped.at(0) if isinstance(source, Kept) else next(iter(mapped))
            assert found["x"].tolist() == [7, 3]
            assert found["pair"][0].tolist() == [2]
            assert sorted(found) == ["new", "pair", "x"]
        assert batch["x"].tolist() == [1, 2]
        assert batch["pair"][0].tolist() == [1]
        assert sorted(batch) == ["pair", "x", "y"]


def test_a_mapped_stream_keeps_its_position():
    def numbers(epoch):
        return ({"x": mx.array(10 * epoch + number)} for number in range(3))

    mapped = ps.data.map(ps.data.Stream(numbers), lambda batch: {"x": batch["x"] * 2})
    list(mapped)
    batches = iter(mapped)
    next(batches)
    again = ps.data.map(ps.data.Stream(numbers), lambda batch: {"x": batch["x"] * 2})
    again.set_state(mapped.get_state())
    assert [batch["x"].item() for batch in again] == [batch["x"].item() for batch in batches] == [22, 24]
    assert not hasattr(ps.data.map([{"x": mx.array(1)}], lambda batch: batch), "get_state")


SEEDS = (0, 1, 2**63 + 5, 2**64 - 1)


@pytest.mark.parametrize("remainder", ["drop", "pad", "wrap"])
def test_every_row_comes_once_an_epoch_for_every_number_of_rows(remainder):
    """Over all ranks of every world, in the first epoch and a late one."""
    for rows in range(1, 201):
        size = min(rows, 1 + rows % 12)
        world = [each for each in range(1, size + 1) if size % each == 0][rows % 3 - 1 :][0]
        options = {"seed": SEEDS[rows % 4], "remainder": remainder, "world": world}
        parts = [Batches({"x": list(range(rows))}, size, rank=rank, **options) for rank in range(world)]
        # With `wrap`, so many batches are whole epochs.
        count = rows // math.gcd(rows, size) if remainder == "wrap" else len(parts[0])
        first, seen = (0, 10**6 * count)[rows % 2], []
        for step in range(first, first + count):
            for part in parts:
                batch = part.at(step)
                assert batch["x"].shape == (size // world,)
                weights = batch["weights"].tolist() if remainder == "pad" else [1.0] * (size // world)
                seen += [row for row, real in zip(batch["x"].tolist(), weights, strict=True) if real]
        if remainder == "drop":
            assert len(set(seen)) == len(seen) == rows // size * size
        elif remainder == "pad":
            assert sorted(seen) == list(range(rows))
        else:
            for start in range(0, len(seen), rows):
                assert sorted(seen[start : start + rows]) == list(range(rows))


def test_numpy_integers_are_integers():
    """In numpy's int32, late steps would overflow."""
    plain = Batches({"x": mx.arange(ROWS)}, 8, seed=3, remainder="wrap")
    narrow = Batches({"x": mx.arange(ROWS)}, np.int8(8), seed=np.uint8(3), remainder="wrap", rank=np.int16(0))
    for step in (100, 2**31, 2**40):
        assert narrow.at(step)["x"].tolist() == plain.at(step)["x"].tolist()
    assert plain.at(np.int64(100))["x"].tolist() == plain.at(100)["x"].tolist()
    for step, message in (
        (-1, "0, got -1"),
        (1.0, "integer, got 1.0"),
        (mx.array(1), r"integer, got array\(1"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^Batches\.at: step .* {message}"):
            plain.at(step)


class Rows:
    """A sequence that reads one row at a time."""

    def __len__(self):
        return 6

    def __getitem__(self, number):
        return np.full(2, number, np.float32)


def test_lists_have_one_dtype_and_sequences_may_read_rows():
    source = Batches(
        {
            "mixed": [1, 2, 2.5, 4, 5, 6],
            "wide": [1, 2, 2**40, 4, 5, 6],
            "scalars": [np.float32(number) for number in range(6)],
            "rows": Rows(),
            "range": range(6),
            "empty": np.zeros((6, 0)),
            "pair": Pair([1, 2, 3, 4, 5, 6], [[1, 2]] * 6),
        },
        2,
        shuffle=False,
    )
    for step in range(3):
        batch = source.at(step)
        dtypes = [str(batch[name].dtype)[9:] for name in ("mixed", "wide", "scalars", "rows", "range")]
        assert dtypes == ["float32", "int64", "float32", "float32", "int32"]
        assert batch["rows"].tolist() == [[2 * step] * 2, [2 * step + 1] * 2]
        assert batch["empty"].shape == (2, 0)
        assert (batch["pair"].left.shape, batch["pair"].right.shape) == ((2,), (2, 2))


class Table:
    """A column of pandas: `column[[0]]` finds labels, not positions."""

    iloc, shape = None, (3,)

    def __len__(self):
        return 3

    def __getitem__(self, labels):
        raise AssertionError


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (["a", "b", "c"], "y.z .*numbers.* str "),
        ([[1, 2], [3], [4, 5]], "y.z .* rows .*one shape: .*non-uniform"),
        ([1, None, 3], "y.z .*numbers.* NoneType "),
        ("abc", "y.z .*sequence, got 'abc'"),
        (np.array(["a", "b", "c"]), "y.z .*numbers .*MLX .*<U1"),
        (np.array([1, None, "a"]), r"y.z .*numbers .*MLX .*\|O"),
        (np.arange(3, dtype=">i4"), "y.z .*numbers .*MLX .*>i4"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "y.z .*not .*masked"),
        (Table(), "y.z .*array, got a Table; .*to_numpy"),
        ({1, 2, 3}, "y.z .*sequence, got \\{1, 2, 3\\}"),
        (memoryview(b"abc"), "y.z .*rows .*TypeError"),
    ],
)
def test_leaves_that_are_not_arrays_of_numbers_are_refused(leaf, message):
    with pytest.raises((ValueError, TypeError), match=f"^Batches: {message}"):
        Batches({"x": mx.arange(3), "y": {"z": leaf}}, 2)


PROGRAM = """
import zlib, mlx.core as mx, purestep as ps
data = ps.data
sequences = [list(range(2, 4 + n % 37)) for n in range(300)]
sources = [
    data.Batches({"x": mx.arange(1000)}, 8, seed=2**63 + 1, remainder="wrap"),
    data.LengthBuckets(sequences, 128, seed=3),
    data.TokenWindows(mx.arange(5000), 4, 16, seed=4),
    data.difficulty_curriculum({"x": mx.arange(300)}, list(range(300)), 8, steps=40_000, seed=5),
    data.length_curriculum(mx.arange(9000), 2, steps=40, longest=64, seed=6),
]
sources.append(data.Mixture(sources, [1, 1, 1, 1, 3], block=10, seed=7))
sources.append(data.Stages([(0, sources[0]), (5, sources[5])]))
for source in sources:
    for step in (0, 7, 12345):
        batch = source.at(step)
        for name, array in sorted(batch.items()):
            print(step, name, array.shape, zlib.crc32(memoryview(array + 0)))
"""


def test_batches_are_the_same_in_every_process():
    printed = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        printed.append(found.stdout)
    assert printed[0].count("\n") >= 21
    assert printed[0] == printed[1]
