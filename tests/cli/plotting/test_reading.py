"""Runs from directories: metrics, settings and what differs."""

import os
from pathlib import Path

import pytest

from purestep.cli.plotting import reading
from purestep.cli.plotting.reading import differences, read_runs, short_names


def write(path, *lines, config=None):
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines))
    if config is not None:
        (path / "config.toml").write_text(config)
    return path


def test_a_last_line_that_is_cut_short_is_left_out_silently(tmp_path):
    [run] = read_runs("plot", [write(tmp_path, b'{"step": 1, "loss": 2}\n', b'{"step": 2, "lo')])
    assert run.rows.column("loss") == ([1], [2.0])
    assert (run.rows.skipped, run.notes) == (0, [])


def test_other_lines_that_are_no_rows_are_counted(tmp_path):
    [run] = read_runs("plot", [write(tmp_path, b"junk\n", b"\n", b'{"step": 1}\n', b"{}\n")])
    assert run.notes == [f"2 lines of {tmp_path / 'metrics.jsonl'} are not rows of a run and were left out"]


def test_a_line_longer_than_any_row_is_not_held(tmp_path):
    long = b'{"step": 1, "x": "' + b"y" * 3_000_000 + b'"}\n'
    path = write(tmp_path, long, b'{"step": 2, "loss": 1}\n')
    with reading.open_regular("plot", path / "metrics.jsonl") as file:
        assert max(map(len, reading.lines_of(file))) < 1_000_010
    [run] = read_runs("plot", [path])
    assert (run.rows.skipped, run.rows.column("loss")) == (1, ([2], [1.0]))


def test_what_is_no_regular_file_is_refused_without_reading(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    for path in (tmp_path / "run", Path("/dev/zero")):
        with pytest.raises(ValueError, match="plot: .* must be a regular file"):
            read_runs("plot", [path])
    with pytest.raises(ValueError, match="must hold a metrics.jsonl"):
        read_runs("plot", [tmp_path])
    with pytest.raises(ValueError, match="plot: there is no "):
        read_runs("plot", [tmp_path / "absent"])


def test_a_file_that_is_too_large_is_refused(tmp_path):
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.truncate(2**31)  # a hole takes no room on the disk
    with pytest.raises(ValueError, match="at most 1 GiB, got 2147483648"):
        read_runs("plot", [tmp_path])


@pytest.mark.parametrize("config", ["x = ", "\x00", "a = 1\na = 2", "x = " + "[" * 100_000])
def test_settings_that_cannot_be_read_are_a_note(tmp_path, config):
    [run] = read_runs("plot", [write(tmp_path, b'{"step": 1}\n', config=config)])
    assert run.config == {}
    assert "config.toml was left out: config: " in run.notes[0]


def test_settings_that_differ(tmp_path):
    row = b'{"step": 1, "loss": 2}\n'
    configs = [
        'rate = 0.1\nseed = 1\nout = "a"\n[sizes]\nwidth = 8',
        'rate = 0.2\nseed = 1\nout = "b"\n[sizes]\nwidth = 9',
        None,
        'rate = 0.2\nseed = 1\nmore = "x"\n[sizes]\nwidth = 9',
    ]
    paths = [write(tmp_path / str(n), row, config=config) for n, config in enumerate(configs)]
    runs = read_runs("plot", paths)
    assert differences(runs) == {
        "rate": [0.1, 0.2, None, 0.2],
        "sizes.width": [8, 9, None, 9],
        "more": [None, None, None, "x"],
    }
    assert differences(runs[1:3]) == {}


def test_names_are_short_and_differ():
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/z"), Path("/a/z")]
    assert short_names(paths) == ["x/run", "y/run", "z", "z (2)"]
    assert len({*short_names([Path("/r")] * 12)}) == 12
