"""A run's checkpoints: complete or absent, the newest intact one restored, nothing lost."""

import json
import math
import os
import subprocess
import sys
import threading
import warnings
from unittest.mock import Mock

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._checkpoint.disk import tensors
from purestep._checkpoint.format.header import seal
from purestep._checkpoint.run import store
from purestep.checkpoint import (
    Checkpointer,
    CorruptError,
    CorruptWarning,
    LockedError,
    RestoreWarning,
    keep_every,
    keep_last,
    save_any,
    save_every_steps,
    save_on_best,
    save_on_signal,
)
from tests.training import TRANSFORM, classifier, ragged, start
from tests.trees import same_bits

VALUE = {"params": {"w": mx.arange(6.0), "b": mx.zeros((2, 2), mx.bfloat16)}, "step": mx.array(3)}


@pytest.fixture
def checkpointer(tmp_path):
    with Checkpointer(tmp_path / "run") as made:
        yield made


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_round_trip_with_its_record(checkpointer):
    metadata = {"epoch": 2, "best": math.inf, "history": [0.1, 0.25], "source": {"position": 7, "name": None}}
    checkpointer.save(VALUE, step=5, metrics={"loss": mx.array(0.5), "bad": math.nan}, metadata=metadata)
    state, record = checkpointer.restore(like=VALUE)
    assert same_bits(state, VALUE)
    assert (record.step, record.metrics["loss"], record.metadata) == (5, 0.5, metadata)
    assert math.isnan(record.metrics["bad"])
    assert record.versions.keys() == {"purestep", "mlx", "python"}
    assert record.bytes == sum(file.stat().st_size for file in record.path.iterdir())
    assert checkpointer.latest().metadata == metadata
    assert same_bits(checkpointer.restore(5).state, VALUE)  # plain containers


def test_the_files_are_those_that_the_ecosystem_reads(checkpointer):
    state = start()
    checkpointer.save(state)
    checkpointer.wait()
    [directory] = [entry for entry in checkpointer.path.iterdir() if entry.name[0] != "."]
    assert directory.name == "step_00000000"
    assert sorted(file.name for file in directory.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "state.safetensors",
    ]
    assert mx.load(str(directory / "model.safetensors")).keys() == set(ps.tree.paths(state.params))  # type: ignore
    rest = {path for path in ps.tree.paths(state) if not path.startswith("params.")}
    assert mx.load(str(directory / "state.safetensors")).keys() == rest  # type: ignore
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["content"]["leaves"].keys() == set(ps.tree.paths(state))


def test_large_states_are_divided(tmp_path):
    with Checkpointer(tmp_path, shard_bytes=40) as checkpointer:
        value = {"params": {name: mx.full(8, float(n)) for n, name in enumerate("abc")}, "step": mx.array(1)}
        checkpointer.save(value, step=1)
        assert same_bits(checkpointer.restore(like=value).state, value)
        assert checkpointer.verify() == {1: []}
    names = {file.name for file in (tmp_path / "step_00000001").iterdir()}
    assert {"model-00001-of-00003.safetensors", "model.safetensors.index.json"} <= names


def test_a_run_resumed_ends_with_the_same_bits(tmp_path):
    step, whole = ps.train_step(classifier, TRANSFORM), start(seed=3)
    for number in range(7):
        whole, _ = step(whole, ragged(number))
    with Checkpointer(tmp_path) as checkpointer:
        state = start(seed=3)
        for number in range(4):
            state, metrics = step(state, ragged(number))
            checkpointer.save(state, metrics=metrics, metadata={"position": number + 1})
    with Checkpointer(tmp_path) as checkpointer:
        state, record = checkpointer.restore(like=start())
    assert record.step == 4
    for number in range(record.metadata["position"], 7):
        state, _ = step(state, ragged(number))
    assert same_bits(state, whole)


def test_a_save_holds_what_the_state_was(checkpointer, monkeypatch):
    go = threading.Event()
    write = tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    value = {"w": mx.ones(3)}
    checkpointer.save(value, step=1)  # returns, though nothing is written yet
    assert not (checkpointer.path / "step_00000001").exists()
    value["w"][0] = 7.0
    go.set()
    assert checkpointer.restore(like=value).state["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_save_waits_for_room(checkpointer, monkeypatch):
    go, order = threading.Event(), []
    write = tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    checkpointer.save({"w": mx.ones(1)}, step=1)
    second = threading.Thread(
        target=lambda: checkpointer.save({"w": mx.ones(1)}, step=2) or order.append("saved")
    )
    second.start()
    second.join(0.2)
    assert second.is_alive()
    order.append("gone")
    go.set()
    second.join(30)
    assert order == ["gone", "saved"]


def failing(monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(tensors, "write_summed", fail)


def test_a_failure_in_the_background_is_raised_by_the_next_call(checkpointer, monkeypatch):
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    failing(monkeypatch, OSError(28, "No space left on device"))
    checkpointer.save(VALUE, step=2)
    with pytest.raises(OSError, match=r"step 2 was not saved: .*No space left.*; earlier check"):
        checkpointer.latest()
    monkeypatch.undo()
    checkpointer.save(VALUE, step=3)  # raised once, then the way is free
    assert [record.step for record in checkpointer.list()] == [1, 3]
    assert [entry.name for entry in checkpointer.path.iterdir() if entry.name.endswith("tmp")] == []


def test_a_failure_in_the_background_is_raised_by_close(tmp_path, monkeypatch):
    failing(monkeypatch, OSError("gone"))
    with pytest.raises(OSError, match="step 2 was not saved: gone"), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(VALUE, step=2)


def test_the_error_of_the_body_is_not_hidden_by_that_of_a_save(tmp_path, monkeypatch):
    failing(monkeypatch, OSError("gone"))

    def body():
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(VALUE, step=2)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        body()
    assert caught.value.__notes__ == [
        "and a checkpoint failed: Checkpointer: step 2 was not saved: gone; earlier checkpoints are intact"
    ]


def test_a_writer_that_nobody_closes_finishes_and_says_what_failed(tmp_path):
    code = (
        "import mlx.core as mx, sys; from purestep.checkpoint import Checkpointer\n"
        "from purestep._checkpoint.disk import tensors\n"
        "c = Checkpointer(sys.argv[1]); c.save({'w': mx.ones(1000)}, step=1); c.wait()\n"
        "c.save({'w': mx.ones(1000)}, step=2); c.wait()\n"
        "def fail(*a): raise OSError('gone')\n"
        "tensors.write_summed = fail; c.save({'w': mx.ones(1000)}, step=3)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (
        done.stderr == "purestep: Checkpointer: step 3 was not saved: gone; earlier checkpoints are intact\n"
    )
    assert [record.step for record in Checkpointer(tmp_path).list()] == [1, 2]


def test_what_is_kept(tmp_path):
    with Checkpointer(tmp_path, keep=keep_last(2), metric="loss") as checkpointer:
        for step, loss in enumerate([0.5, 0.1, 0.9, 0.8, 0.7]):
            checkpointer.save(VALUE, step=step, metrics={"loss": loss})
        assert checkpointer.best().step == 1
        assert [record.step for record in checkpointer.list()] == [1, 3, 4]
        assert checkpointer.best(mode="max").step == 3
        checkpointer.delete(3)
        assert [record.step for record in checkpointer.list()] == [1, 4]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "step_00000001", "step_00000004"]


def test_saving_a_step_again_replaces_it(checkpointer):
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.save({"w": mx.zeros(1)}, step=1)
    assert checkpointer.restore(like={"w": mx.ones(1)}).state["w"].item() == 0.0
    assert sorted(entry.name for entry in checkpointer.path.iterdir()) == [".lock", "step_00000001.2"]
    assert checkpointer.restore(1, like={"w": mx.ones(1)}).state["w"].item() == 0.0
    assert (checkpointer.verify(), [record.step for record in checkpointer.list()]) == ({1: []}, [1])
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.delete(1)
    assert sorted(entry.name for entry in checkpointer.path.iterdir()) == [".lock"]


def test_saving_a_step_again_and_failing_leaves_the_first(checkpointer, monkeypatch):
    checkpointer.save({"w": mx.ones(1)}, step=1)
    checkpointer.wait()
    failing(monkeypatch, OSError("gone"))
    checkpointer.save({"w": mx.zeros(1)}, step=1)
    with pytest.raises(OSError, match="step 1 was not saved"):
        checkpointer.wait()
    assert checkpointer.restore(like={"w": mx.ones(1)}).state["w"].item() == 1.0


def test_after_going_back_the_newest_is_the_one_saved_last(tmp_path):
    with Checkpointer(tmp_path, keep=keep_last(2)) as checkpointer:
        for step in (400, 500, 410):
            checkpointer.save({"w": mx.array(float(step))}, step=step)
        assert [record.step for record in checkpointer.list()] == [500, 410]
        assert checkpointer.latest().step == 410
    with Checkpointer(tmp_path, keep=keep_last(2)) as checkpointer:  # the order outlives the process
        checkpointer.save({"w": mx.array(420.0)}, step=420)
        assert checkpointer.restore(like={"w": mx.array(0.0)}).record.step == 420
        assert [record.step for record in checkpointer.list()] == [410, 420]


def test_what_was_just_saved_is_kept_beside_a_damaged_newer_step(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (100, 200):
            checkpointer.save({"w": mx.array(float(step))}, step=step)
    flip(tmp_path / "step_00000200" / "state.safetensors", -1)
    with Checkpointer(tmp_path, keep=keep_last(1)) as checkpointer:
        with pytest.warns(CorruptWarning, match="used step 100"):
            state, _ = checkpointer.restore(like={"w": mx.array(0.0)})
        checkpointer.save(state, step=150)
        assert checkpointer.restore(like=state).record.step == 150


def test_a_failed_save_does_not_count_for_the_policy(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, save_when=save_on_best("loss")) as checkpointer:
        assert checkpointer.save_if_due(VALUE, step=1, metrics={"loss": 1.0})
        checkpointer.wait()
        failing(monkeypatch, OSError("gone"))
        assert checkpointer.save_if_due(VALUE, step=2, metrics={"loss": 0.1})
        with pytest.raises(OSError, match="step 2 was not saved"):
            checkpointer.wait()
        monkeypatch.undo()
        assert checkpointer.save_if_due(VALUE, step=3, metrics={"loss": 0.2})
        assert [record.step for record in checkpointer.list()] == [1, 3]


def test_a_failure_does_not_cost_the_next_save_too(checkpointer, monkeypatch):
    failing(monkeypatch, OSError("gone"))
    checkpointer.save(VALUE, step=1)
    checkpointer._writer._pending[0].exception()  # ended, and not raised yet
    monkeypatch.undo()
    with pytest.raises(OSError, match="step 1 was not saved"):
        checkpointer.save(VALUE, step=2)
    assert [record.step for record in checkpointer.list()] == [2]


def test_several_failures_are_all_told(tmp_path, monkeypatch):
    go = threading.Event()

    def fail(*arguments):
        go.wait(30)
        raise OSError("gone")

    monkeypatch.setattr(tensors, "write_summed", fail)
    checkpointer = Checkpointer(tmp_path, max_pending=3)
    for step in (1, 2, 3):
        checkpointer.save(VALUE, step=step)
    go.set()
    with pytest.raises(OSError, match="step 1 was not saved") as caught:
        checkpointer.close()
    assert [note[:18] for note in caught.value.__notes__] == ["and then: Checkpoi"] * 2
    checkpointer.close()


def test_a_policy_that_raises_loses_nothing(tmp_path):
    def keep(records):
        raise KeyError("accuracy")

    checkpointer = Checkpointer(tmp_path, keep=keep)
    checkpointer.save(VALUE, step=1)
    checkpointer._writer._pending[0].exception()  # ended, and not raised yet
    with pytest.raises(RuntimeError, match="step 1 is saved, but cleaning up after it failed: KeyError"):
        checkpointer.save(VALUE, step=2)
    with pytest.raises(RuntimeError, match="step 2 is saved"):
        checkpointer.close()
    assert [record.step for record in Checkpointer(tmp_path).list()] == [1, 2]


def test_a_nan_does_not_cost_the_last_checkpoint(tmp_path):
    policy = save_on_signal()
    with Checkpointer(tmp_path, save_when=policy, metric="loss") as checkpointer:
        with pytest.warns(UserWarning, match="step 1 is saved without loss, which is NaN"):
            checkpointer.save_if_due(VALUE, step=1, metrics={"loss": math.nan, "a": 1.0}, signalled=True)
        assert checkpointer.latest().metrics == {"a": 1.0}


def test_readers_are_not_disturbed_by_a_writer_that_cleans_up(tmp_path):
    value, done = {"w": mx.zeros(1000)}, threading.Event()
    wrong = []

    def read():
        reader = Checkpointer(tmp_path)
        while not done.is_set():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    reader.restore(like=value)
                    reader.verify()
                    reader.latest()
            except Exception as error:
                wrong.append(error)

    with Checkpointer(tmp_path, keep=keep_last(1)) as checkpointer:
        checkpointer.save(value, step=0)
        checkpointer.wait()
        reader = threading.Thread(target=read)
        reader.start()
        for step in range(60):
            checkpointer.save(value, step=step // 2)  # every step twice
        checkpointer.wait()
        done.set()
        reader.join()
    assert wrong == []


def test_a_manifest_that_the_disk_does_not_give_is_not_passed_over(checkpointer, monkeypatch):
    for step in (1, 2):
        checkpointer.save({"w": mx.ones(1)}, step=step)
    checkpointer.wait()
    read = type(checkpointer.path).read_bytes

    def fail(path, *arguments, **options):
        if path.parent.name == "step_00000002":
            raise OSError(5, "Input/output error")
        return read(path, *arguments, **options)

    monkeypatch.setattr(type(checkpointer.path), "read_bytes", fail)
    with pytest.raises(OSError, match=r"step_00000002/manifest.json cannot be read \(Input/output error\)"):
        checkpointer.restore(like={"w": mx.ones(1)})
    assert checkpointer.restore(1).record.step == 1  # for those who know what they ask for
    assert checkpointer.verify()[1] == []
    assert checkpointer.verify()[2][0].endswith("manifest.json cannot be read (Input/output error)")
    checkpointer.close()
    with Checkpointer(checkpointer.path) as other:
        with pytest.raises(OSError, match="cannot be read"):
            other.save({"w": mx.ones(1)}, step=3)  # its serial may be taken
        other.delete(2)
        other.save({"w": mx.ones(1)}, step=3)
        assert [record.step for record in other.list()] == [1, 3]


def test_a_forked_child_neither_keeps_the_lock_nor_hangs(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    go, told = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        child = os.fork()
    if not child:
        try:
            checkpointer.close()
            try:
                checkpointer.save(VALUE, step=9)
            except ValueError as error:
                os.write(told[1], str(error).encode())
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        assert b"belongs to the process that made it" in os.read(told[0], 1000)
        checkpointer.save(VALUE, step=2)
        checkpointer.close()
        with Checkpointer(tmp_path) as second:
            second.save(VALUE, step=3)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)


def test_a_lock_file_that_was_removed_is_noticed(checkpointer):
    checkpointer.save(VALUE, step=1)
    checkpointer.wait()
    (checkpointer.path / ".lock").unlink()
    checkpointer.save(VALUE, step=2)
    with pytest.raises(LockedError, match=r"\.lock was removed or replaced while it was held"):
        checkpointer.wait()


def test_an_interrupted_close_lets_nobody_in_before_the_writer_is_done(tmp_path, monkeypatch):
    go, write = threading.Event(), tensors.write_summed
    monkeypatch.setattr(tensors, "write_summed", lambda *arguments: go.wait(30) and write(*arguments))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(VALUE, step=1)
    monkeypatch.setattr(checkpointer._writer, "wait", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpointer.close()
    with Checkpointer(tmp_path) as second:
        with pytest.raises(LockedError):
            second.save(VALUE, step=2)
        go.set()
        checkpointer._writer._pool.shutdown()
        second.save(VALUE, step=2)
        assert [record.step for record in second.list()] == [1, 2]


def test_save_if_due_asks_the_policy(tmp_path):
    policy = save_any(save_every_steps(10), save_on_best("loss"), save_on_signal())
    with Checkpointer(tmp_path, save_when=policy) as checkpointer:
        losses = {1: 0.5, 2: 0.6, 3: 0.4, 10: 0.7, 11: 0.7}
        saved = [
            s for s, loss in losses.items() if checkpointer.save_if_due(VALUE, step=s, metrics={"loss": loss})
        ]
        assert saved == [1, 3, 10]
        assert checkpointer.save_if_due(VALUE, step=12, signalled=True)
    with Checkpointer(tmp_path, save_when=policy) as checkpointer:  # what was saved before counts
        assert not checkpointer.save_if_due(VALUE, step=13, metrics={"loss": 0.45})
    with Checkpointer(tmp_path) as plain, pytest.raises(ValueError, match="save_when must be given"):
        plain.save_if_due(VALUE, step=1)


def test_a_corrupt_latest_is_passed_over_loudly_and_left_alone(checkpointer):
    for step in (1, 2, 3):
        checkpointer.save({"w": mx.full(4, float(step))}, step=step)
    checkpointer.wait()
    flip(checkpointer.path / "step_00000003" / "state.safetensors", -1)
    flip(checkpointer.path / "step_00000002" / "manifest.json", 100)
    like = {"w": mx.zeros(4)}
    with pytest.warns(CorruptWarning, match=r"used step 1, passed over\n.*step_00000002.*\n.*step_00000003"):
        state, record = checkpointer.restore(like=like)
    assert (record.step, state["w"].tolist()) == (1, [1.0] * 4)
    assert len(list(checkpointer.path.glob("step_*/state.safetensors"))) == 3
    with pytest.raises(CorruptError, match="step_00000003.* do not have the checksum written"):
        checkpointer.restore(3, like=like)
    problems = checkpointer.verify()
    assert [bool(problems[step]) for step in (1, 2, 3)] == [False, True, True]
    with pytest.warns(CorruptWarning, match="step_00000002"):
        assert [record.step for record in checkpointer.list()] == [1, 3]
    flip(checkpointer.path / "step_00000001" / "state.safetensors", -1)
    with pytest.raises(CorruptError, match=r"no checkpoint is intact:\n.*00002.*\n.*00003.*\n.*00001"):
        checkpointer.restore(like=like)
    checkpointer.save({"w": mx.zeros(4)}, step=3)  # a damaged one is replaced
    with pytest.warns(CorruptWarning, match="used step 3, passed over\n.*step_00000002"):
        assert checkpointer.restore(like=like).record.step == 3


def test_a_template_of_another_model_is_refused_not_passed_over(checkpointer):
    checkpointer.save({"w": mx.ones(4)}, step=1)
    with pytest.raises(ValueError, match=r"w has shape \(4,\) in the file, \(5,\)"):
        checkpointer.restore(like={"w": mx.ones(5)})
    with pytest.warns(RestoreWarning, match="w was cast from float32 to float16"):
        state, _ = checkpointer.restore(like={"w": mx.ones(4, mx.float16)}, cast=True)
    assert state["w"].dtype == mx.float16


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    code = (
        "import mlx.core as mx, sys; from purestep.checkpoint import Checkpointer\n"
        "c = Checkpointer(sys.argv[1]); c.save({'w': mx.ones(1)}, step=1); c.wait()\n"
        "print('ready', flush=True); sys.stdin.read(); c.close()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "ready\n"
    second = Checkpointer(tmp_path)
    with pytest.raises(
        LockedError, match=rf"is being written by pid {first.pid} on {os.uname().nodename}: close"
    ):
        second.save(VALUE, step=2)
    assert second.restore(like={"w": mx.zeros(1)}).record.step == 1  # reading is free
    with pytest.raises(LockedError):
        second.delete(1)
    first.communicate("")
    second.save(VALUE, step=2)
    second.close()
    with Checkpointer(tmp_path) as third, Checkpointer(tmp_path) as fourth:
        third.save(VALUE, step=3)
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            fourth.save(VALUE, step=4)


def test_temporaries_of_the_dead_are_cleaned_and_those_of_others_are_not(tmp_path):
    host = store.lock.host()
    dead, foreign = f".step_00000009.{host}.999999.abcdef01tmp", ".step_00000009.elsewhere.7.abcdef01tmp"
    for name in (dead, foreign, ".mine"):
        (tmp_path / name).mkdir()
    assert Checkpointer(tmp_path).list() == []  # a reader touches nothing
    assert {dead, foreign} <= {entry.name for entry in tmp_path.iterdir()}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(VALUE, step=3)
    assert {entry.name for entry in tmp_path.iterdir()} == {".lock", ".mine", foreign, "step_00000003"}


def test_links_and_paths_that_lead_elsewhere_are_refused(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    with Checkpointer(outside) as other, Checkpointer(run) as checkpointer:
        other.save(VALUE, step=7)
        checkpointer.save(VALUE, step=1)
    (run / "step_00000007").symlink_to(outside / "step_00000007")
    with pytest.warns(CorruptWarning, match="step_00000007 is a symbolic link"):
        assert Checkpointer(run).restore().record.step == 1
    with Checkpointer(run) as checkpointer:
        checkpointer.delete(7)
    assert (outside / "step_00000007").is_dir()
    file = run / "step_00000001" / "state.safetensors"
    file.rename(tmp_path / "state.safetensors")
    file.symlink_to(tmp_path / "state.safetensors")
    with pytest.raises(CorruptError, match="state.safetensors is a symbolic link"):
        Checkpointer(run).restore(1)
    manifest = run / "step_00000001" / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    content["files"]["../step_00000001/state.safetensors"] = content["files"].pop("state.safetensors")
    content["leaves"]["step"][0] = "../step_00000001/state.safetensors"
    manifest.write_text(seal(content))
    with pytest.raises(ValueError, match="which is not in its directory"):
        Checkpointer(run).restore(1)


def test_a_renamed_or_swapped_checkpoint_is_noticed(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save({"w": mx.ones(4)}, step=1)
        checkpointer.save({"w": mx.zeros(4)}, step=2)
    one, two = tmp_path / "step_00000001", tmp_path / "step_00000002"
    (one / "state.safetensors").rename(tmp_path / "kept")
    (two / "state.safetensors").rename(one / "state.safetensors")
    (tmp_path / "kept").rename(two / "state.safetensors")
    assert all(Checkpointer(tmp_path).verify().values())
    two.rename(tmp_path / "step_00000003")
    with pytest.raises(CorruptError, match="holds step 2: it was renamed or swapped"):
        Checkpointer(tmp_path).restore(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.save({"w": 1}, step=1), r"Checkpointer.save: state\.w is the Python number 1"),
        (lambda c: c.save({"w": mx.ones(1)}), "step must be given"),
        (lambda c: c.save(VALUE, step=-1), "step must be at least 0, got -1"),
        (
            lambda c: c.save(VALUE, step=10**18),
            "step must be at most 999999999999999999, got 1000000000000000000",
        ),
        (lambda c: c.save(VALUE, step=1, metrics={1: 0.5}), "metrics must have names, got the key 1"),
        (
            lambda c: c.save(VALUE, step=1, metrics={"a": 10**400}),
            r"metrics\['a'\] must be less than 2\*\*63",
        ),
        (
            lambda c: c.save(VALUE, step=1, metadata={"a": 1 << 70}),
            r"metadata\['a'\] must be less than 2\*\*63",
        ),
        (lambda c: c.verify("x"), "step must be an integer, got 'x'"),
        (
            lambda c: c.save(VALUE, step=1, metrics={"loss": math.nan}),
            r"metrics\['loss'\] must not be NaN",
        ),
        (lambda c: c.save(VALUE, step=1, metrics={"loss": "low"}), r"metrics\['loss'\] must be a number"),
        (lambda c: c.save(VALUE, step=1, metadata={"a": (1, 2)}), r"metadata\['a'\] must be plain"),
        (lambda c: c.save(VALUE, step=1, metadata={"a": [{1: 2}]}), r"metadata\['a'\]\[0\] has the key 1"),
        (lambda c: c.restore(), "there is no checkpoint in"),
        (lambda c: c.restore(4), "has no step 4; it has: none"),
        (lambda c: c.delete(4), "has no step 4; it has: none"),
        (lambda c: c.best("loss", "low"), "mode must be min or max, got 'low'"),
        (lambda c: (c.close(), c.save(VALUE, step=1)), "the Checkpointer is closed"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_written(tmp_path, call, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        call(Checkpointer(tmp_path / "run", metric="loss"))
    assert not list(tmp_path.glob("run/step*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 3}, "keep must be callable, got 3"),
        ({"mode": "low"}, "mode must be min or max, got 'low'"),
        ({"metric": 3}, "metric must be the name of a metric, got 3"),
        ({"max_pending": 0}, "max_pending must be at least 1, got 0"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=f"^Checkpointer: {message}$"):
        Checkpointer(tmp_path, **options)


def test_a_directory_that_is_a_file_or_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="path must be a directory"):
        Checkpointer(tmp_path / "file")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.lock, "Lock", refuse)
    with pytest.raises(PermissionError, match=r"cannot be written \(Permission denied\): choose another"):
        Checkpointer(tmp_path).save(VALUE, step=1)


def test_keeping_every_nth_and_best_is_what_any_of_keeps(tmp_path):
    with Checkpointer(tmp_path, keep=keep_every(2), asynchronous=False) as checkpointer:
        for step in range(5):
            checkpointer.save({"w": mx.ones(1)}, step=step)
            assert (tmp_path / f"step_{step:08}").is_dir()  # there when save returns
        assert [record.step for record in checkpointer.list()] == [0, 2, 4]


def test_numbers_of_numpy_are_numbers_and_come_back_as_pythons(tmp_path):
    policy = keep_last(np.int64(1))
    with Checkpointer(
        tmp_path, keep=policy, max_pending=np.int64(1), shard_bytes=np.int32(1000)
    ) as checkpointer:
        metrics = {
            "loss": np.float32(0.5),
            "count": np.int64(3),
            "array": np.array(2.0),
            "wide": np.float64(1.5),
        }
        metadata = {"epoch": np.int64(4), "best": [np.float32(0.25)], "done": np.bool_(True)}
        for step in (2, 3):
            checkpointer.save({"w": mx.ones(2)}, step=np.int64(step), metrics=metrics, metadata=metadata)
        record = checkpointer.restore(step=np.int64(3)).record
        assert [record.step for record in checkpointer.list()] == [3]
    assert record.metrics == {"loss": 0.5, "count": 3.0, "array": 2.0, "wide": 1.5}
    assert record.metadata == {"epoch": 4, "best": [0.25], "done": True}
    assert all(type(value) is float for value in record.metrics.values())
    assert type(record.step) is int


@pytest.mark.parametrize("value", [np.bool_(True), np.ones(2), np.complex64(1), True, "1"])
def test_what_is_no_number_is_refused_as_a_metric(value, tmp_path):
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(TypeError, match=r"metrics\['x'\] must be a num"),
    ):
        checkpointer.save({"w": mx.ones(2)}, step=1, metrics={"x": value})
