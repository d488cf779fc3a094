"""The directory of a run with damaged files, and with files that cannot be written."""

import errno
from pathlib import Path

import pytest

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


def test_what_cannot_be_written_says_what_stays_and_how_to_go_on(directory):
    stays = "kept; .*--resume --out "
    full = OSError(errno.ENOSPC, "No space left on device", "file")
    with (
        pytest.raises(WriteError, match=f"^demo: file cannot .*: No space left.*{stays}"),
        directory.writing(Path("file")),
    ):
        raise full
    short = OSError("cannot write 9 bytes to file: [write] Unable to write 2 bytes to file.")
    with (
        pytest.raises(WriteError, match=f"^demo: cannot write 9 bytes to .*2 bytes to file.*{stays}") as own,
        directory.writing(Path("file")),
    ):
        raise short
    with pytest.raises(WriteError) as same, directory.writing(Path("other")):
        raise own.value
    assert same.value is own.value


def test_the_contents_are_what_a_run_has_written(directory):
    (directory.path / "checkpoints").mkdir()
    (directory.path / "bundles").mkdir()
    (directory.path / "curves.png").touch()
    assert directory.contents() == ["checkpoints/", "curves.png"]


@pytest.mark.parametrize("place", [None, "checkpoints", "first/checkpoints"])
def test_states_without_checkpoints_are_of_an_earlier_version(directory, place):
    directory.check_layout()
    (directory.path / "state.safetensors").touch()
    if place is None:
        with pytest.raises(ValueError, match="earlier version .*state.safetensors"):
            directory.check_layout()
    else:
        (directory.path / place).mkdir(parents=True)
        directory.check_layout()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/below"):
        with pytest.raises(WriteError, match=f"^demo: --out .*{out} cannot .*: "):
            RunDirectory(str(tmp_path / out)).start({})
    with pytest.raises(WriteError, match="^demo: --out /proc/run cannot .*: "):
        RunDirectory("/proc/run").start({})
