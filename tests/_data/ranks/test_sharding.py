"""The rows of all ranks together are the batch of one process."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._data.core.ranks import whole_of
from purestep._data.ranks.sharding import RowsAt, rows_of
from purestep.testing import same_bits

DATA = {"x": mx.arange(48).reshape(24, 2), "y": mx.arange(24)}
TOKENS = mx.arange(400)


def batches(**options):
    return ps.data.Batches(DATA, 8, seed=3, **options)


class Policy:
    on_policy = True

    def at(self, state):
        return {"x": state + mx.arange(8)}


SOURCES = {
    "batches": batches(),
    "padded": ps.data.Batches({"x": mx.arange(13)}, 8, remainder="pad"),
    "wrapped": ps.data.Batches({"x": mx.arange(13)}, 8, remainder="wrap"),
    "windows": ps.data.TokenWindows(TOKENS, 8, 5),
    "filled": ps.data.TokenWindows(TOKENS, 8, 5, shuffle=False, ignore_index=-100),
    "mixture": ps.data.Mixture([batches(), ps.data.TokenWindows(TOKENS, 4, 5)], [1, 1], block=4),
    "stages": ps.data.Stages([(0, batches()), (2, ps.data.map(batches(), dict))]),
    "mapped": ps.data.map(batches(), lambda b, key: {"x": b["y"] + mx.random.uniform(key=key)}, seed=1),
    "with a scalar": ps.data.map(batches(), lambda batch: {**batch, "rate": mx.array(0.5)}),
}


def joined(parts):
    return ps.tree.map(lambda *rows: mx.concatenate(rows) if rows[0].ndim else rows[0], *parts)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("world", [2, 4])
def test_the_rows_of_all_ranks_are_the_batch(name, world):
    source = SOURCES[name]
    parts = [rows_of(source, rank, world) for rank in range(world)]
    for step in (0, 1, 5):
        assert same_bits(joined([part.at(step) for part in parts]), source.at(step))
        assert same_bits(whole_of(parts[-1]).at(step), source.at(step))
    assert all(not hasattr(source, "__len__") or len(part) == len(source) for part in parts)


@pytest.mark.parametrize("name", ["batches", "windows", "mixture"])
def test_sources_that_know_their_rows_read_no_others(name):
    found = rows_of(SOURCES[name], 1, 2)
    assert not isinstance(found, RowsAt)
    assert not any(isinstance(each, RowsAt) for each in getattr(found, "_sources", []))


def test_uneven_rows_differ_by_one():
    source = ps.data.Batches({"x": mx.arange(24)}, 7, shuffle=False)
    parts = [rows_of(source, rank, 3, uneven=True) for rank in range(3)]
    assert [part.at(1)["x"].tolist() for part in parts] == [[7, 8], [9, 10], [11, 12, 13]]


def test_iterables_and_policies():
    listed = [{"x": np.arange(4)}, {"x": np.arange(4, 10)}]
    assert [b["x"].tolist() for b in rows_of(listed, 1, 2)] == [[2, 3], [7, 8, 9]]
    once = rows_of(iter(listed), 0, 2)
    assert [b["x"].tolist() for b in once] == [[0, 1], [4, 5, 6]]
    assert list(once) == []
    assert rows_of(Policy(), 1, 2).at(mx.array(1))["x"].tolist() == [5, 6, 7, 8]
    assert rows_of(Policy(), 1, 2).on_policy


def test_stacks_are_made_of_the_rows_of_a_rank():
    parts = [ps.data.stacked(rows_of(batches(), rank, 2), 3) for rank in range(2)]
    whole = ps.data.stacked(batches(), 3)
    stacks = [part.at(1)["y"] for part in parts]
    assert same_bits(mx.concatenate(stacks, axis=1), whole.at(1)["y"])
    assert same_bits(whole_of(parts[1]).at(1), whole.at(1))


def test_a_group_of_one_receives_the_source_itself():
    source = batches()
    assert ps.data.for_rank(source) is source
    assert whole_of(batches(rank=1, world=2)).at(4)["y"].tolist() == source.at(4)["y"].tolist()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (batches(rank=0, world=2), "source must give the rows of all ranks"),
        (rows_of(batches(), 0, 2), "source must give the rows of all ranks"),
        (ps.data.Batches(DATA, 9), "batch_size must be divisible by 2 ranks, got 9; pass uneven=True"),
        ([{"x": mx.arange(5)}], "the rows of batch.x must be divisible by 2 ranks, got 5; pass uneven=True"),
        ([{"x": mx.arange(4), "y": mx.arange(2)}], "must share their first axis, got batch.x 4, batch.y 2"),
        ([{"x": mx.array(1.0)}], "batch must hold at least one array with rows"),
    ],
)
def test_refuses(source, expected):
    with pytest.raises(ValueError, match=f"for_rank: .*{expected}"):
        list(rows_of(source, 0, 2))


def test_refuses_a_rank_without_a_row():
    with pytest.raises(ValueError, match=r"for_rank: batch\.x must have a row for each of 4 ranks, got 3"):
        list(rows_of([{"x": mx.arange(3)}], 0, 4, uneven=True))


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (DATA, {}),
        (3, {}),
        (ps.data.stacked(batches(), 2), {}),
        (batches(), {"uneven": 1}),
        (batches(), {"group": 2}),
    ],
)
def test_refuses_other_kinds(source, options):
    with pytest.raises(TypeError, match="for_rank: "):
        ps.data.for_rank(source, **options)
