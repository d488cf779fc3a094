"""Rows from lines that anyone may have written."""

import itertools
import json
import math

import pytest

from purestep.cli.plotting import rows as module
from purestep.cli.plotting.rows import Rows, row_of, rows_of


def lines(*rows):
    return [(row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'{"loss": 1}',
        b'{"step": "3"}',
        b'{"step": 1.5}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 9007199254740993}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": 1, "x": ' + b"1" * 1_000_000 + b"}",
        b'{"step": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_line_that_is_no_row_is_skipped(line):
    assert row_of(line) is None
    assert rows_of([line, b'{"step": 1}']).skipped == (1 if line else 0)


def test_figures_are_numbers_alone():
    line = json.dumps({"step": 4, "a": 1, "b": True, "c": "x", "d": [1], "e": None, "f": {"g": {"h": 2.5}}})
    row = row_of(line.encode())
    assert math.isnan(row.pop("e"))
    assert row == {"step": 4, "a": 1.0, "f/g/h": 2.5}
    assert row_of(b'{"step": 1, "x": 1e999, "y": NaN}')["x"] == math.inf
    assert row_of(b'{"step": 1, "x": ' + b"9" * 400 + b"}")["x"] == math.inf
    deep = row_of(b'{"step": 1, "a": ' + b'{"a": ' * 50 + b"1" + b"}" * 51)
    assert deep == {"step": 1}


def test_a_resumed_run_replaces_the_rows_that_it_repeats():
    steps = [1, 2, 3, 4, 3, 4, 5]
    rows = rows_of(lines(*({"step": step, "loss": place} for place, step in enumerate(steps))))
    assert rows.column("loss") == ([1, 2, 3, 4, 5], [0, 1, 4, 5, 6])


def test_rows_of_one_step_are_merged():
    rows = rows_of(lines({"step": 1, "loss": 1.0}, {"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": 3.0}))
    assert rows.rows[0] == {"step": 1, "loss": 1.0, "eval_loss": 2.0}
    assert rows.column("eval_loss") == ([1], [2.0])


def test_the_number_of_names_is_bounded():
    rows = Rows()
    rows.add(json.dumps({"step": 1, **{f"n{number}": 1 for number in range(10_000)}}).encode())
    assert len(rows.names) == 4096
    assert rows.dropped
    assert len(rows.rows[0]) == 4096


def test_a_long_run_is_thinned_and_keeps_evaluations_and_the_newest_row(monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 1000)
    rows = Rows()
    for step in range(1, 20_001):
        rows.add(json.dumps({"step": step, "loss": step, "rate": 1}).encode())
        if step % 1000 == 0:
            rows.add(json.dumps({"step": step, "eval_loss": step}).encode())
        assert rows.rows[-1]["step"] == step
        assert sum(map(len, rows.rows)) <= 1000
    assert rows.column("eval_loss")[0] == list(range(1000, 20_001, 1000))
    steps = rows.column("loss")[0]
    assert steps[0] == 1
    assert len(steps) > 100
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert max(gaps) <= 2 * rows.stride  # early and late rows are as dense


def test_rows_of_ever_new_figures_are_bounded_too(monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS", 1000)
    rows = Rows()
    for step in range(5000):
        rows.add(json.dumps({"step": step, f"f{step % 1000}": 1, f"g{step % 7}": 1}).encode())
        assert sum(map(len, rows.rows)) <= 1000
    assert len(rows.rows) > 50
