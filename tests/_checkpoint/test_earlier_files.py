"""Files that an earlier version wrote load to the bit; `tests/references/make_stored.py` made them."""

import shutil
import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep.testing import bits
from tests.references import make_stored
from tests.references.make_stored import FOLDER, STEP


@pytest.fixture(autouse=True)
def no_hyperparameter_warnings():
    """Let the constants of a template differ from the stored ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.checkpoint.HyperparameterWarning)
        yield


def expected_state():
    return make_stored.filled(make_stored.train_state())._replace(step=mx.array(STEP))


def assert_same(found, expected):
    assert ps.tree.spec(found) == ps.tree.spec(expected)
    assert bits(found) == bits(expected)


def test_a_state_in_one_file_loads():
    found = ps.checkpoint.load(FOLDER / "state.safetensors", like=make_stored.train_state())
    assert_same(found, expected_state())


def test_the_states_of_all_optimizers_in_a_divided_file_load():
    assert len(list(FOLDER.glob("optimizers-*.safetensors"))) > 1
    templates = make_stored.optimizer_states()
    found = ps.checkpoint.load(FOLDER / "optimizers.safetensors", like=templates)
    assert_same(found, make_stored.filled(templates))


def test_every_optimizer_has_a_stored_state():
    names = {name.partition("_with_")[0] for name in make_stored.optimizer_states()}
    assert names >= set(ps.optimizers.__all__)


def test_a_state_in_bytes_loads():
    data = (FOLDER / "state.msgpack").read_bytes()
    found = ps.checkpoint.from_bytes(data, like=make_stored.train_state())
    assert_same(found, expected_state())


def test_a_checkpoint_of_a_run_is_restored(tmp_path):
    shutil.copytree(FOLDER / "run", tmp_path / "run")
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.verify() == {STEP: []}
        found, record = checkpointer.restore(like=make_stored.train_state())
    assert_same(found, expected_state())
    assert (record.step, record.metrics, record.metadata) == (STEP, {"loss": 0.5}, {"epoch": 1})


def test_a_bundle_loads_with_its_named_tuples():
    [path] = (FOLDER / "bundles").iterdir()
    found = ps.replay.load(path)
    assert_same((found.state, found.batch), (expected_state(), make_stored.batch()))
    assert type(found.state) is ps.TrainState
    assert type(found.state.opt_state) is type(make_stored.train_state().opt_state)
    assert (found.step, found.reason, found.compiled) == (STEP, ("metrics.loss",), False)
    assert mx.isnan(found.metrics["loss"]).item()
