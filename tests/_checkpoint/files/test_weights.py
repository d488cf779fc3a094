"""Weights that other programs wrote: read by name into a template, or refused with every name."""

import json
import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

import purestep as ps
from purestep.checkpoint import CorruptError, RestoreWarning, load, load_weights, save
from tests.refusals import assert_listed
from tests.trees import same_bits


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.Dropout(0.5))


@pytest.fixture
def params():
    with ps.rng.scope(mx.random.key(3)):
        return ps.functional(Net())[1]


@pytest.fixture
def like(params):
    return ps.tree.zeros_like(params)


def named(params):
    return {name: np.array(array) for name, array in tree_flatten(params)}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_file_of_the_right_names_is_read_into_likes_own_containers(tmp_path, params, like):
    save_file(named(params), tmp_path / "any.safetensors", metadata={"format": "pt"})
    read = load_weights(tmp_path / "any.safetensors", like=like)
    assert same_bits(read, params)
    assert ps.tree.alike(read, params)  # the empty containers of ReLU and Dropout too
    (tmp_path / "any.safetensors").unlink()
    assert same_bits(load_weights_twice(tmp_path, params, like), params)


def load_weights_twice(tmp_path, params, like):
    """Overwrite the file after reading: what was read stays."""
    save_file(named(params), tmp_path / "b.safetensors")
    read = load_weights(tmp_path / "b.safetensors", like=like)
    save_file({name: array + 1 for name, array in named(params).items()}, tmp_path / "b.safetensors")
    return read


def divided(directory, params):
    files = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    held = {}
    for number, (name, array) in enumerate(named(params).items()):
        file = list(files)[number % 2]
        files[file][name] = array
        held[name] = file
    for file, arrays in files.items():
        save_file(arrays, directory / file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": held}))
    return index


def test_an_index_and_a_directory_are_read(tmp_path, params, like):
    index = divided(tmp_path, params)
    assert same_bits(load_weights(index, like=like), params)
    (tmp_path / "config.json").write_text("{}")
    assert same_bits(load_weights(tmp_path, like=like), params)
    with pytest.raises(
        ValueError, match=r"model-00001-of-00002\.safetensors .*one of several .*model\.safetensors\.index"
    ):
        load(tmp_path / "model-00001-of-00002.safetensors", like=like)
    with pytest.warns(RestoreWarning, match="purestep did not write"):
        assert same_bits(load(index, like=like), params)


def test_directories_without_one_file_say_what_they_hold(tmp_path, params, like):
    with pytest.raises(FileNotFoundError, match=r"^checkpoint\.load_weights: .* .*no safetensors file"):
        load_weights(tmp_path, like=like)
    for name in ("a", "b"):
        save_file(named(params), tmp_path / f"{name}.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"^checkpoint\.load_weights: .*several files, .*a\.safetensors, b\.safe"
    ):
        load_weights(tmp_path, like=like)
    (tmp_path / "a.safetensors").unlink()
    assert same_bits(load_weights(tmp_path, like=like), params)
    with pytest.raises(FileNotFoundError, match=r"^checkpoint\.load_weights: no file .*/absent$"):
        load_weights(tmp_path / "absent", like=like)


def test_the_parameters_of_a_checkpoint_and_of_a_file_of_ours_are_read(tmp_path, params, like):
    state = ps.TrainState.create(params, ps.optimizers.sgd(0.1))
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(state)
    assert same_bits(load_weights(tmp_path / "run" / "step_00000000", like=like), params)
    save(tmp_path / "params.safetensors", params)
    assert same_bits(load_weights(tmp_path / "params.safetensors", like=like), params)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    like = {"a": mx.zeros(2), "b": mx.zeros(2), "c": mx.zeros(2), "kept": mx.ones(1)}
    arrays = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float16), "c": np.zeros(2, np.int32)}
    save_file({**arrays, "more": np.zeros(1)[:0].astype(np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"^checkpoint\.load_weights: .*m\.safetensors .*like:") as error:
        load_weights(tmp_path / "m.safetensors", like=like)
    assert_listed(
        error.value,
        "a ... (3,) in the file, (2,) in like",
        "b ... float16 in the file, float32 in like; ... cast=True",
        "c ... int32 in the file, float32 in like",
        "kept ... in like, not in the file",
        "more ... in the file, not in like",
    )
    with pytest.warns(RestoreWarning) as said:
        read = load_weights(
            tmp_path / "m.safetensors", like=like, cast=True, partial=["a", "c", "more", "k*"]
        )
    assert len(said) == 1
    assert read["kept"].item() == 1.0
    assert read["b"].dtype == mx.float32
    for word in (
        "b was cast from float16",
        "more is in the file, not in like: left in the file",
        "kept from like",
    ):
        assert word in str(said[0].message)
    with pytest.raises(ValueError, match="^checkpoint.load_weights: partial .*'x' .*no name"):
        load_weights(tmp_path / "m.safetensors", like=like, partial=["x"])


def test_names_are_renamed_by_part_or_by_function(tmp_path, params, like):
    save_file({"model." + name: array for name, array in named(params).items()}, tmp_path / "m.safetensors")
    for rename in ({"model": ""}, lambda name: name.removeprefix("model.")):
        with pytest.warns(RestoreWarning, match=r"model\.layers\.layers\.0\.weight .*read as layers\.layers"):
            assert same_bits(load_weights(tmp_path / "m.safetensors", like=like, rename=rename), params)
    with pytest.raises(ValueError, match=r"rename: other .*not in the file"):
        load_weights(tmp_path / "m.safetensors", like=like, rename={"other": ""})
    with pytest.raises(
        ValueError, match=r"model\.layers\.layers\.0\.bias and model\.layers\.layers\.0\.weight .*both .* x\n"
    ):
        load_weights(tmp_path / "m.safetensors", like=like, rename=lambda name: "x")


def test_keys_that_our_paths_quote_are_matched_by_their_plain_names(tmp_path):
    like = {"0": mx.zeros(1), "a.b": {"w": mx.zeros(1)}, "q": [mx.zeros(1)], 3: mx.zeros(1)}
    names = ["0", "a.b.w", "q.0", "3"]
    save_file({n: np.full(1, i + 1, np.float32) for i, n in enumerate(names)}, tmp_path / "m.safetensors")
    read = load_weights(tmp_path / "m.safetensors", like=like)
    assert [leaf.item() for leaf in ps.tree.leaves(read)] == [1.0, 2.0, 3.0, 4.0]


def test_load_reads_a_foreign_file_and_says_that_it_was_not_verified(tmp_path, params, like):
    save_file(named(params), tmp_path / "m.safetensors")
    with pytest.warns(RestoreWarning, match="did not write: .*no checksums, .*not verified"):
        assert same_bits(load(tmp_path / "m.safetensors", like=like), params)
    with pytest.raises(ValueError, match=r"m\.safetensors .*not write.* checkpoint\.load_weights") as error:
        load(tmp_path / "m.safetensors")
    assert not isinstance(error.value, CorruptError)
    state = ps.TrainState.create(like, ps.optimizers.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"params\.layers\.layers\.0\.weight .*in like(.|\n)*like=state\.params"
    ):
        load(tmp_path / "m.safetensors", like=state)


def test_a_file_of_ours_whose_header_lost_its_name_is_damage_not_foreign(tmp_path, params, like):
    save(tmp_path / "m.safetensors", params)
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole.replace(b'"purestep"', b'"pure5tep"', 1))
    with pytest.raises(CorruptError):
        load(tmp_path / "m.safetensors", like=like)


def test_damaged_and_unreadable_files_are_refused(tmp_path, params, like):
    index = divided(tmp_path, params)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(CorruptError, match="/model-00001-of-00002.safetensors is cut"):
        load_weights(tmp_path, like=like)
    shard.unlink()
    with pytest.raises(CorruptError, match="/model-00001-of-00002.safetensors is missing$"):
        load_weights(tmp_path, like=like)
    shard.write_bytes(whole)
    content = json.loads(index.read_text())
    content["weight_map"]["absent"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(CorruptError, match="model.safetensors.index.json is damaged: absent .*model-00001"):
        load_weights(tmp_path, like=like)
    for text in ("[]", "{", '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(CorruptError, match="model.safetensors.index.json is damaged: .*index"):
            load_weights(index, like=like)
    index.write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(
        ValueError, match="model.safetensors.index.json names '../x.safetensors', .*directory"
    ):
        load_weights(index, like=like)
    save_file({"w": np.zeros(1, np.float64)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"d\.safetensors .*w in F64, .*MLX"):
        load_weights(tmp_path / "d.safetensors", like={"w": mx.zeros(1)})
