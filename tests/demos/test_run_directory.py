"""The directory of a run with damaged files, and with files that cannot be written."""

import errno
import json

import mlx.core as mx
import pytest

from purestep import TrainState, checkpoint, optimizers
from purestep.demos.shared.run_directory import RunDirectory, WriteError


@pytest.fixture
def directory(tmp_path):
    """Return a directory that holds a run."""
    directory = RunDirectory(str(tmp_path / "run"))
    directory.start({"demo": "toy"})
    return directory


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_a_run_that_is_not_json_is_damaged(directory, content):
    directory.run.write_bytes(content)
    with pytest.raises(ValueError, match=r"demo: .*run.json .*damaged: .*JSON"):
        directory.facts()


def test_of_a_large_run_no_more_is_read_than_a_run_has(directory):
    with directory.run.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match="demo: .*run.json .*damaged: .*1,000,000 bytes"):
        directory.facts()


def test_a_directory_in_the_place_of_a_run_is_none(tmp_path):
    (tmp_path / "run" / "run.json").mkdir(parents=True)
    with pytest.raises(ValueError, match="demo: --resume .*/run: .*run.json"):
        RunDirectory(str(tmp_path / "run")).facts()


@pytest.mark.parametrize(
    "line", [b"5", b"[]", b"{}", b'{"step": "1"}', b'{"step": true}', b'{"step": 1, "loss": "x"}', b"\xff",
             b'{"step": 1, "phase": 5}', b'{"step": 1, "loss": null}', b"[" * 100_000],
)  # fmt: skip
def test_lines_of_metrics_that_are_not_ours_are_numbered_and_a_last_one_is_left_out(directory, line):
    sound = json.dumps({"phase": "a", "step": 1, "loss": 0.5}).encode()
    directory.metrics.write_bytes(sound + b"\n" + line)
    assert directory.history() == [{"phase": "a", "step": 1, "loss": 0.5}]
    directory.metrics.write_bytes(b"\n".join([sound, line, sound, b""]))
    with pytest.raises(ValueError, match=r"demo: .*metrics.jsonl .*damaged .*line 2"):
        directory.history()


def test_what_cannot_be_written_says_what_stays_and_how_to_go_on(directory, monkeypatch):
    state = TrainState.create({"w": mx.zeros(2)}, optimizers.sgd(0.1))
    directory.save(directory.state, state)
    before = directory.state.read_bytes()

    def full(path, state):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save", full)
    stays = "kept; .*--resume --out "
    with pytest.raises(WriteError, match=f"^demo: .*state.safetensors cannot .*: No space left.*{stays}"):
        directory.save(directory.state, state)
    assert directory.state.read_bytes() == before

    def short(path, state):
        raise OSError(f"cannot write 9 bytes to {path}: [write] Unable to write 2 bytes to file.")

    monkeypatch.setattr(checkpoint, "save", short)
    with pytest.raises(WriteError, match=f"^demo: cannot write 9 bytes to .*2 bytes to file.*{stays}"):
        directory.save(directory.state, state)
    directory.metrics.unlink()
    directory.metrics.mkdir()
    with pytest.raises(WriteError, match=r"^demo: .*metrics.jsonl cannot .*: Is a directory"):
        directory.record({"step": 1})


def test_a_directory_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/below"):
        with pytest.raises(WriteError, match=f"^demo: --out .*{out} cannot .*: "):
            RunDirectory(str(tmp_path / out)).start({})
    with pytest.raises(WriteError, match="^demo: --out /proc/run cannot .*: "):
        RunDirectory("/proc/run").start({})
