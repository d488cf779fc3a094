"""A run's checkpoints: complete, with their record, and refused where a call is wrong."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._checkpoint.run import store
from purestep.checkpoint import (
    Checkpointer,
    RestoreWarning,
    keep_last,
    save_any,
    save_every_steps,
    save_on_best,
    save_on_signal,
)
from tests._checkpoint.damage import raising
from tests._checkpoint.states import VALUE
from tests.training import TRANSFORM, classifier, ragged, start
from tests.trees import same_bits


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


def test_a_nan_does_not_cost_the_last_checkpoint(tmp_path):
    policy = save_on_signal()
    with Checkpointer(tmp_path, save_when=policy, metric="loss") as checkpointer:
        with pytest.warns(UserWarning, match="step 1 .*loss, .*NaN"):
            checkpointer.save_if_due(VALUE, step=1, metrics={"loss": math.nan, "a": 1.0}, signalled=True)
        assert checkpointer.latest().metrics == {"a": 1.0}


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
    with (
        Checkpointer(tmp_path) as plain,
        pytest.raises(ValueError, match="save_if_due: save_when .* given .*None"),
    ):
        plain.save_if_due(VALUE, step=1)


def test_a_template_of_another_model_is_refused_not_passed_over(checkpointer):
    checkpointer.save({"w": mx.ones(4)}, step=1)
    with pytest.raises(ValueError, match=r"step_00000001 .*like:\n  w .*\(4,\) in the file, \(5,\)"):
        checkpointer.restore(like={"w": mx.ones(5)})
    with pytest.warns(RestoreWarning, match="w .*cast from float32 to float16"):
        state, _ = checkpointer.restore(like={"w": mx.ones(4, mx.float16)}, cast=True)
    assert state["w"].dtype == mx.float16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.save({"w": 1}, step=1), r"Checkpointer.save: state\.w .*Python number 1"),
        (lambda c: c.save({"w": mx.ones(1)}), "Checkpointer.save: step .* given: .*no step"),
        (lambda c: c.save(VALUE, step=-1), "step .* 0, got -1"),
        (
            lambda c: c.save(VALUE, step=10**18),
            "step .* 999999999999999999, got 1000000000000000000",
        ),
        (lambda c: c.save(VALUE, step=1, metrics={1: 0.5}), "Checkpointer.save: metrics .*got the key 1"),
        (
            lambda c: c.save(VALUE, step=1, metrics={"a": 10**400}),
            r"metrics\['a'\] .* 2\*\*63, got",
        ),
        (
            lambda c: c.save(VALUE, step=1, metadata={"a": 1 << 70}),
            r"metadata\['a'\] .* 2\*\*63, got",
        ),
        (lambda c: c.verify("x"), "step .* integer, got 'x'"),
        (
            lambda c: c.save(VALUE, step=1, metrics={"loss": math.nan}),
            r"metrics\['loss'\] .*NaN",
        ),
        (lambda c: c.save(VALUE, step=1, metrics={"loss": "low"}), r"metrics\['loss'\] .* number.*got 'low'"),
        (lambda c: c.save(VALUE, step=1, metadata={"a": (1, 2)}), r"metadata\['a'\] .* plain .*got tuple"),
        (
            lambda c: c.save(VALUE, step=1, metadata={"a": [{1: 2}]}),
            r"metadata\['a'\]\[0\] .*key 1; .*strings",
        ),
        (lambda c: c.restore(), "Checkpointer.restore: .*no checkpoint .*/run$"),
        (lambda c: c.restore(4), "Checkpointer.restore: .*no step 4; .*none"),
        (lambda c: c.delete(4), "Checkpointer.delete: .*no step 4; .*none"),
        (lambda c: c.best("loss", "low"), "Checkpointer.best: mode .* min .*max, got 'low'"),
        (lambda c: (c.close(), c.save(VALUE, step=1)), "Checkpointer.save: .* closed"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_written(tmp_path, call, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        call(Checkpointer(tmp_path / "run", metric="loss"))
    assert not list(tmp_path.glob("run/step*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 3}, "keep .* callable, got 3"),
        ({"mode": "low"}, "mode .* min .*max, got 'low'"),
        ({"metric": 3}, "metric .* name .*got 3"),
        ({"max_pending": 0}, "max_pending .* 1, got 0"),
        ({"shard_bytes": 0}, "shard_bytes .* 1, got 0"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=f"^Checkpointer: {message}$"):
        Checkpointer(tmp_path, **options)


def test_a_directory_that_is_a_file_or_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="^Checkpointer: path .* directory, .*/file "):
        Checkpointer(tmp_path / "file")
    monkeypatch.setattr(store.lock, "Lock", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(
        PermissionError, match=r"Checkpointer\.save: .*cannot .*\(Permission denied\): choose another"
    ):
        Checkpointer(tmp_path).save(VALUE, step=1)


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
        pytest.raises(TypeError, match=r"metrics\['x'\] .*number .*got "),
    ):
        checkpointer.save({"w": mx.ones(2)}, step=1, metrics={"x": value})
