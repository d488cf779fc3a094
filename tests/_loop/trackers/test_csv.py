"""`csv`: the rows of a run as a table."""

import csv
import resource

import numpy as np
import pytest

import purestep as ps
from tests._loop.trackers.runs import fitted, killed, roll_back, rows_of
from tests._loop.workload import STEP, At, start


def table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)  # all lines are of one length
    return rows


def column(rows, name):
    return [(int(row["step"]), float(row[name])) for row in rows if row[name]]


def test_the_table_has_each_row_once_also_after_resuming_from_an_older_step(tmp_path):
    path = tmp_path / "logs" / "metrics.csv"
    killed(ps.callbacks.csv(path), tmp_path, 11)
    assert [step for step, _ in column(table(path), "loss")] == [2, 4, 6, 8, 10]
    path.write_text(path.read_text() + "4,1")  # a crash cut the last line short
    roll_back(tmp_path, 4)
    result = fitted(ps.callbacks.csv(path), tmp_path, 12)
    rows = table(path)
    assert column(rows, "loss") == rows_of(result.history, "loss")
    assert column(rows, "eval_loss") == rows_of(result.history, "eval_loss")
    assert [row["sample"] for row in rows if row["sample"]] == [
        f"a\\nsample of step {step}" for step in (4, 8, 12)
    ]
    fitted(ps.callbacks.csv(path), tmp_path / "other", 2)
    assert len(table(path.with_name("metrics.csv.before"))) == len(rows)


def test_figures_that_come_later_are_columns_at_the_end(tmp_path):
    path = tmp_path / "metrics.csv"
    fitted(ps.callbacks.csv(path), tmp_path, 4)
    header = path.read_text().splitlines()[0].split(",")
    assert header[:2] == ["step", "loss"]
    assert header.index("sample") > header.index("eval_loss") > header.index("tokens")
    assert np.isfinite([value for _, value in column(table(path), "steps_per_second")]).all()


def test_a_late_table_gets_the_rows_before(tmp_path):
    fitted(ps.callbacks.log(lambda line: None), tmp_path, 8)
    result = fitted(ps.callbacks.csv(tmp_path / "m.csv"), tmp_path, 12)
    assert column(table(tmp_path / "m.csv"), "loss") == rows_of(result.history, "loss")


def test_a_full_disk_is_one_warning_and_rows_are_whole(tmp_path):
    path = tmp_path / "m.csv"

    def fill(progress):
        if progress.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.warns(ps.callbacks.MetricsWarning, match="csv: .* training goes on") as caught:
            result = ps.fit(
                STEP, start(), At(), steps=20, callbacks=[fill, ps.callbacks.csv(path)], log_every=2
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caught) == 1
    assert result.reason == "steps"
    assert [step for step, _ in column(table(path), "loss")] == [2, 4]


def test_a_name_of_two_lines_is_one_column(tmp_path):
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, "a\nb\r": metrics["loss"]}

    ps.fit(step, start(), At(), steps=4, callbacks=[ps.callbacks.csv(tmp_path / "m.csv")], log_every=2)
    rows = table(tmp_path / "m.csv")
    assert column(rows, r"a\nb\r") == column(rows, "loss")
    assert [step for step, _ in column(rows, "loss")] == [2, 4]


@pytest.mark.parametrize("text", ["name,age\nAda,36\n", "\x00\xff\xfe\n1,2\n", "no end of a line"])
def test_a_resumed_run_moves_a_file_that_is_no_table_of_a_run(text, tmp_path):
    fitted(ps.callbacks.log(lambda line: None), tmp_path, 4)
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("latin-1"))
    result = fitted(ps.callbacks.csv(path), tmp_path, 8)
    assert path.with_name("m.csv.before").read_bytes() == text.encode("latin-1")
    assert column(table(path), "loss") == rows_of(result.history, "loss")


def test_a_resumed_run_drops_lines_that_are_no_rows_and_writes_rows_that_are_missing(tmp_path):
    path = tmp_path / "m.csv"
    fitted(ps.callbacks.csv(path), tmp_path, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith((b"6,", b"8,"))]  # the disk was full
    path.write_bytes(b"".join([*kept, b"\xff\xfe\n", b"-1,2\n", b"99999999999999999999,1\n"]))
    result = fitted(ps.callbacks.csv(path), tmp_path, 12)
    rows = table(path)
    assert column(rows, "loss") == rows_of(result.history, "loss")
    assert column(rows, "eval_loss") == rows_of(result.history, "eval_loss")


def test_a_table_that_is_moved_during_the_run_begins_again_with_its_header(tmp_path):
    path = tmp_path / "m.csv"

    def rotate(progress):
        if progress.step == 5:
            path.rename(tmp_path / "m.csv.1")

    ps.fit(STEP, start(), At(), steps=8, callbacks=[rotate, ps.callbacks.csv(path)], log_every=2)
    assert [step for step, _ in column(table(tmp_path / "m.csv.1"), "loss")] == [2, 4]
    assert [step for step, _ in column(table(path), "loss")] == [6, 8]
