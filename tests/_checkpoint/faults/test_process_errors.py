"""Errors of the process, such as too many open files, are no damage: no older checkpoint is used."""

import contextlib
import errno
import io
import os
import resource
import time
import warnings
from pathlib import Path

import mlx.core as mx
import pytest

from purestep import replay
from purestep._checkpoint.disk import lock
from purestep.checkpoint import Checkpointer, CorruptError, load, load_weights, save
from tests._checkpoint.damage import raising

ERRORS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EINTR]
LIKE = {"w": mx.zeros(3)}


class Faults:
    """Fails the n-th call of the system that names something below a directory; counts them all."""

    def __init__(self, monkeypatch, below):
        self.calls, self.position, self.number, self.below = [], None, errno.EMFILE, os.fspath(below)
        for module, name in (
            (io, "open"),
            (os, "stat"),
            (os, "lstat"),
            (os, "listdir"),
            (os, "scandir"),
            (os, "open"),
        ):
            self._wrap(monkeypatch, module, name, getattr(module, name))

    def _wrap(self, monkeypatch, module, name, real):
        def call(path, *arguments, **options):
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.below):
                self.calls.append(name)
                if len(self.calls) == self.position:
                    raise OSError(self.number, os.strerror(self.number), os.fspath(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(module, name, call)

    @contextlib.contextmanager
    def at(self, position, number=errno.EMFILE):
        self.calls, self.position, self.number = [], position, number
        try:
            yield
        finally:
            self.position = None


@pytest.fixture
def saved(tmp_path):
    """A directory with two checkpoints, the newer of them twos."""
    with Checkpointer(tmp_path / "run", shard_bytes=None) as checkpointer:
        for step in (1, 2):
            checkpointer.save({"w": mx.full(3, float(step))}, step=step)
    return tmp_path / "run"


def test_no_older_checkpoint_is_restored_whatever_call_fails(saved, monkeypatch):
    faults = Faults(monkeypatch, saved)
    with faults.at(None):
        Checkpointer(saved).restore(like=LIKE)
    positions, raised = len(faults.calls), []
    assert positions > 5
    for position in range(1, positions + 1):
        for number in ERRORS:
            with faults.at(position, number), warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    state, record = Checkpointer(saved).restore(like=LIKE)
                except OSError as error:
                    raised.append((error.errno, number))
                else:
                    assert (record.step, state["w"].tolist()) == (2, [2.0] * 3)
    assert len(raised) > positions
    assert all(got == want for got, want in raised)


def test_listing_and_verifying_report_no_damage_that_is_not_there(saved, monkeypatch):
    faults = Faults(monkeypatch, saved)
    for question in (lambda c: [r.step for r in c.list()], lambda c: c.latest().step, lambda c: c.verify()):
        with faults.at(None):
            right = question(Checkpointer(saved))
        for position in range(1, len(faults.calls) + 1):
            with faults.at(position), warnings.catch_warnings():
                warnings.simplefilter("error")
                with contextlib.suppress(OSError):
                    assert question(Checkpointer(saved)) == right


def test_a_serial_is_never_given_twice_when_the_listing_fails(saved, monkeypatch):
    faults = Faults(monkeypatch, saved)
    for position in range(1, 30):
        checkpointer = Checkpointer(saved, asynchronous=False)
        with faults.at(position, errno.EACCES), contextlib.suppress(OSError):
            checkpointer.save({"w": mx.full(3, 1.0)}, step=100 + position)
        checkpointer.save({"w": mx.full(3, 1000.0)}, step=50)  # the directory is free, and goes on
        checkpointer.close()
        records = Checkpointer(saved).list()
        assert len({record.serial for record in records}) == len(records)
        assert records[-1].step == 50


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_what_mlx_could_not_read_is_not_damaged(saved, tmp_path, monkeypatch, number):
    refused = raising(RuntimeError("[read] Unable to read from file."))
    save(tmp_path / "s.safetensors", LIKE)
    uses = [
        lambda: Checkpointer(saved).restore(like=LIKE),
        lambda: Checkpointer(saved).verify(),
        lambda: load(tmp_path / "s.safetensors", like=LIKE),
        lambda: load_weights(tmp_path / "s.safetensors", like=LIKE),
    ]
    for name in ("load", "eval"):
        with monkeypatch.context() as patched:
            patched.setattr(mx, name, refused)
            for use in uses:
                with pytest.raises(OSError, match=r"\.safetensors cannot .*MLX .*: try again"):
                    use()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_where_the_system_says_why_mlx_could_not_read_so_does_the_error(saved, monkeypatch, number):
    def refused(*_, **__):
        monkeypatch.setattr(Path, "open", raising(OSError(number, "as it is")))
        raise RuntimeError("[read] Unable to read from file.")

    monkeypatch.setattr(mx, "load", refused)
    with pytest.raises(OSError, match="as it is"):
        Checkpointer(saved).restore(like=LIKE)


def test_a_read_that_fails_and_is_not_awaited_does_not_fail_what_is_computed_next(tmp_path, monkeypatch):
    file, begin = tmp_path / "s.safetensors", mx.async_eval
    state = {f"{number}": mx.full(1000, 1.0 + number) for number in range(8)}
    save(file, state)

    def cut(arrays):
        os.truncate(file, 2000)
        with contextlib.suppress(RuntimeError):
            begin(arrays)
        raise ValueError("something else is found first")

    monkeypatch.setattr(mx, "async_eval", cut)
    with pytest.raises(ValueError, match="something else"):
        load(file, like=state)
    for _ in range(3):
        time.sleep(0.01)
        mx.eval(mx.ones(3) + 1)


def test_a_file_that_was_cut_while_mlx_read_it_is_damaged(tmp_path, monkeypatch):
    file = tmp_path / "s.safetensors"
    save(file, LIKE)

    def cut(*_, **__):
        file.write_bytes(file.read_bytes()[:-4])
        raise RuntimeError("[read] Unable to read from file.")

    monkeypatch.setattr(mx, "eval", cut)
    with pytest.raises(CorruptError, match=r"s\.safetensors is cut .*safetensors"):
        load(file, like=LIKE)


def test_a_lock_is_given_back_also_where_its_file_cannot_be_written(saved, monkeypatch):
    checkpointer = Checkpointer(saved)
    checkpointer.save(LIKE, step=3)
    checkpointer.wait()

    with monkeypatch.context() as patched:
        patched.setattr(lock.fcntl, "flock", raising(OSError(errno.EIO, "Input/output error")))
        checkpointer.close()
    with Checkpointer(saved) as other:
        other.save(LIKE, step=4)


def test_nothing_is_taken_for_missing_that_the_system_cannot_look_at(saved, tmp_path, monkeypatch):
    save(tmp_path / "s.safetensors", LIKE)
    faults = Faults(monkeypatch, tmp_path)
    uses = [
        lambda: load(tmp_path / "s.safetensors", like=LIKE),
        lambda: load_weights(tmp_path, like=LIKE),
        lambda: replay.load(saved / "step_00000001"),
        lambda: replay.record(lambda state, batch: (state, {}), saved),
        lambda: save(tmp_path / "s.safetensors", {**LIKE, "b": mx.ones(3)}, shard_bytes=4),
    ]
    for use in uses:
        with faults.at(None), contextlib.suppress(ValueError, FileExistsError):
            use()
        for position in range(1, len(faults.calls) + 1):
            with faults.at(position, errno.EACCES), contextlib.suppress(ValueError, OSError):
                try:
                    use()
                    pytest.fail("no error")
                except FileNotFoundError as error:
                    pytest.fail(str(error))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "s.safetensors"]


def test_a_file_of_a_state_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path / "s.safetensors", LIKE)
    faults = Faults(monkeypatch, tmp_path)
    with faults.at(None):
        load(tmp_path / "s.safetensors", like=LIKE)
    for position in range(1, len(faults.calls) + 1):
        for number in ERRORS:
            with faults.at(position, number), contextlib.suppress(OSError):
                load(tmp_path / "s.safetensors", like=LIKE)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux does")
def test_with_no_file_left_to_open_nothing_is_called_damaged(saved):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for free in range(4):
            with contextlib.suppress(OSError):
                assert Checkpointer(saved).restore(like=LIKE).record.step == 2
            os.close(held.pop())
            assert free < 4
    except CorruptError as error:
        pytest.fail(str(error))
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
