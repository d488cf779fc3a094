"""States in a file: to the bit."""

import os

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given

import purestep as ps
from purestep.checkpoint import load, save, to_bytes
from tests.refusals import assert_listed
from tests.training import TRANSFORM, classifier, ragged, start
from tests.trees import FLOATS, Pair, arrays, containers, same_bits

EVERY_DTYPE = {
    tuple_name: mx.zeros((2,), dtype)
    for tuple_name, dtype in {
        "bool": mx.bool_, "u8": mx.uint8, "i8": mx.int8, "u16": mx.uint16, "i16": mx.int16, "u32": mx.uint32,
        "i32": mx.int32, "u64": mx.uint64, "i64": mx.int64, "c64": mx.complex64,
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@given(value=containers(arrays((*FLOATS, mx.int32, mx.bool_))))
def test_a_round_trip_gives_the_same_bits(directory, value):
    save(directory / "state.safetensors", value)
    assert same_bits(load(directory / "state.safetensors", like=value), value)


def test_every_dtype_and_layout_survives(tmp_path):
    value = {
        **EVERY_DTYPE,
        "transposed": mx.arange(6).reshape(2, 3).T,
        "wide": mx.broadcast_to(mx.ones(1), (4,)),
    }
    save(tmp_path / "s", value)
    assert same_bits(load(tmp_path / "s", like=value), value)


def test_a_train_state_resumes_with_the_same_bits(tmp_path):
    step, state = ps.train_step(classifier, TRANSFORM, microbatches=2), start(seed=3)
    for number in range(3):
        state, _ = step(state, ragged(number))
    save(tmp_path / "new" / "state.safetensors", state)
    for number in range(3, 6):
        state, _ = step(state, ragged(number))
    resumed = load(tmp_path / "new" / "state.safetensors", like=start())
    assert type(resumed) is ps.TrainState
    for number in range(int(resumed.step), 6):
        resumed, _ = step(resumed, ragged(number))
    assert same_bits(resumed, state)


def test_params_carry_their_paths_as_names_for_any_reader(tmp_path):
    save(tmp_path / "s.safetensors", start())
    names = set(mx.load(str(tmp_path / "s.safetensors")))
    assert {"params.w", "params.b", "opt_state.1.0.mu.w", "step", "rng"} <= names


def test_what_was_loaded_does_not_change_with_the_file(tmp_path):
    save(tmp_path / "s", {"w": mx.ones(3)})
    loaded = load(tmp_path / "s", like={"w": mx.zeros(3)})
    (tmp_path / "s").write_bytes(b"\0" * os.path.getsize(tmp_path / "s"))
    assert loaded["w"].tolist() == [1.0, 1.0, 1.0]


def test_dict_order_does_not_matter(tmp_path):
    save(tmp_path / "s", {"a": mx.array(1), "b": mx.array(2)})
    assert load(tmp_path / "s", like={"b": mx.array(0), "a": mx.array(0)})["b"].item() == 2


def test_every_mismatch_is_listed_by_path(tmp_path):
    save(tmp_path / "s", {"w": mx.ones(3), "old": mx.ones(1), "p": Pair(mx.ones(1), None)})
    like = {"w": mx.ones((3, 1), mx.bfloat16), "new": mx.ones(1), "p": (mx.ones(1), None)}
    with pytest.raises(ValueError, match=f"^checkpoint.load: {tmp_path}/s .*like:") as error:
        load(tmp_path / "s", like=like)
    assert_listed(
        error.value,
        "w ... (3,) in the file, (3, 1) in like",
        "w ... float32 in the file, bfloat16 in like",
        "old ... in the file, not in like",
        "p ... Pair in the file, ... tuple in like",
        "new ... in like, not in the file",
    )


def test_a_model_exported_alone_has_its_own_names(tmp_path):
    with ps.rng.scope(mx.random.key(0)):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    _, params, _ = ps.functional(model)
    save(tmp_path / "model.safetensors", ps.tree.map(mx.ones_like, params))
    model.load_weights(str(tmp_path / "model.safetensors"))
    assert model.layers[1].weight.tolist() == [[1.0, 1.0, 1.0]]


def test_leaves_that_are_not_arrays_are_refused_by_path(tmp_path):
    with pytest.raises(TypeError, match=r"^checkpoint.save: state\.a\.0 .*Python number 1"):
        save(tmp_path / "s", {"a": [1]})
    assert not list(tmp_path.iterdir())
    save(tmp_path / "s", {"a": [mx.array(1)]})
    with pytest.raises(TypeError, match=r"^checkpoint.load: like\.a\.0 .*Python number 1"):
        load(tmp_path / "s", like={"a": [1]})


@pytest.mark.parametrize("write", [lambda tree: save("never", tree), to_bytes], ids=["file", "bytes"])
def test_a_tree_too_deep_to_be_read_back_is_refused(write):
    value = mx.ones(1)
    for _ in range(300):
        value = {"a": value}
    with pytest.raises(ValueError, match=": state .* 100 containers"):
        write(value)
