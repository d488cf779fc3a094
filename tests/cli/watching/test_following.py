"""A file that grows, is cut short, is resumed, is replaced and disappears."""

import os

import mlx.core as mx
import pytest

import purestep as ps
from purestep.cli.watching.following import Follower
from tests._loop.workload import STEP, TRANSFORM, At


def row(step, loss=1.0):
    return f'{{"step": {step}, "loss": {loss}}}\n'.encode()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def follower(tmp_path):
    found = Follower("watch", tmp_path)
    yield found
    found.close()


def test_a_line_is_read_when_it_is_complete(file, follower):
    assert follower.poll() == ([], False)
    whole = row(1) + row(2)
    with file.open("ab", buffering=0) as out:
        for byte in whole:
            out.write(bytes([byte]))
            follower.poll()
            assert len(follower.rows.rows) == whole[: out.tell()].count(b"\n")
    assert follower.poll() == ([], False)
    assert follower.rows.skipped == 0


def test_a_run_that_is_resumed_or_replaced_is_read_again(file, follower):
    file.write_bytes(row(1) + row(2) + row(3) + b'{"st')
    assert follower.poll() == ([1, 2, 3], False)
    other = file.with_name("new")
    other.write_bytes(row(1) + row(2, 9.0))
    other.replace(file)
    assert follower.poll() == ([1, 2], True)
    assert follower.rows.column("loss") == ([1, 2], [1.0, 9.0])
    file.write_bytes(row(1, 5.0))  # in place and shorter
    assert follower.poll() == ([1], True)
    file.rename(file.with_name("metrics.jsonl.before"))
    assert follower.poll() == ([], True)
    assert follower.poll() == ([], False)
    file.write_bytes(row(7))
    assert follower.poll() == ([7], False)


def test_a_real_run_that_is_resumed_has_each_step_once(tmp_path, file, follower):
    def look(progress):
        follower.poll()

    def train(steps):
        with ps.checkpoint.Checkpointer(tmp_path / "c", save_when=ps.checkpoint.save_every_steps(4)) as kept:
            state = ps.TrainState.create({"w": mx.zeros(4)}, TRANSFORM, seed=0)
            callbacks = [ps.callbacks.jsonl(file), look]
            ps.fit(STEP, state, At(), steps=steps, checkpointer=kept, callbacks=callbacks, log_every=1)

    train(6)
    with file.open("ab") as out:
        out.write(b'{"step": 99, "lo')  # a crash
    train(10)
    follower.poll()
    assert follower.rows.column("loss")[0] == list(range(1, 11))


@pytest.mark.parametrize("name", ["run", "lr-0.001", "run.jsonl"])
@pytest.mark.parametrize("directory", [True, False])
def test_a_run_of_any_name_may_begin_later(tmp_path, name, directory):
    found = Follower("watch", tmp_path / name)
    assert found.poll() == ([], False)
    if directory:
        (tmp_path / name).mkdir()
        assert found.poll() == ([], False)
    (tmp_path / name / "metrics.jsonl" if directory else tmp_path / name).write_bytes(row(1))
    assert found.poll() == ([1], False)
    found.close()


def test_lines_that_are_no_rows_are_a_note(file, follower):
    file.write_bytes(row(1) + b"\x00\xff\n")
    follower.poll()
    assert follower.run().notes == [f"1 lines of {file} are not rows of a run and were left out"]


def test_a_line_that_never_ends_is_not_held(file, follower):
    with file.open("ab") as out:
        for _ in range(5):
            out.write(b"x" * 1_000_000)
            out.flush()
            follower.poll()
            assert len(follower._rest) <= 2_000_000
        out.write(b"\n" + row(2))
    assert follower.poll().steps == [2]
    assert follower.rows.skipped == 1


def test_what_is_no_regular_file_is_refused(file, follower):
    os.mkfifo(file)
    with pytest.raises(ValueError, match="watch: .* must be a regular file"):
        follower.poll()


def test_settings_may_come_later_and_be_broken(file, follower):
    file.write_bytes(row(1))
    follower.poll()
    assert follower.run().config == {}
    config = file.with_name("config.toml")
    config.write_text("max_steps = 3")
    assert follower.run().config == {"max_steps": 3}
    config.write_text("max_steps = ")
    assert "was left out" in follower.run().notes[0]


def test_the_age_is_that_of_the_file(file, follower):
    assert follower.age() is None
    file.write_bytes(row(1))
    os.utime(file, (1, 1))
    assert follower.age() > 1e9
    os.utime(file, (2e10, 2e10))  # another clock
    assert follower.age() == 0.0
