"""Whole models in directories and files: every array, by its name, for any reader; complete or absent."""

import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

import purestep as ps
from purestep import adapters
from purestep.checkpoint import load_weights, save, save_weights
from tests._checkpoint.exporting.reading import contents, described, metadata, whole
from tests.trees import same_bits


class Net(nn.Module):
    """Trained, frozen, tied, private and running arrays; bfloat16 too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = [nn.Linear(4, 4), nn.Sequential(nn.BatchNorm(4), nn.ReLU(), nn.Dropout(0.1))]
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 2)
        self.frozen.set_dtype(mx.bfloat16)
        self.frozen.freeze()
        self._mask = mx.ones(3)


NAMES = {
    "embed.weight",
    "frozen.bias",
    "frozen.weight",
    "layers.0.bias",
    "layers.0.weight",
    *(f"layers.1.layers.0.{name}" for name in ("bias", "running_mean", "running_var", "weight")),
}


@pytest.fixture
def model():
    with ps.rng.scope(mx.random.key(3)):
        return Net()


def arrays_of(model):
    return {name: array for name, array in tree_flatten(model.parameters()) if name in NAMES}


def test_a_module_is_written_under_its_own_names_and_tied_arrays_once(tmp_path, model):
    save_weights(tmp_path / "a" / "out", model)
    assert whole(tmp_path / "a" / "out") == described(arrays_of(model))
    assert {path.name for path in (tmp_path / "a" / "out").iterdir()} == {
        "model.safetensors",
        "model.safetensors.index.json",
    }
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_trained_arrays_take_the_place_of_the_modules_and_it_is_left_unchanged(tmp_path, model):
    _, params, model_state = ps.functional(model)
    before = described(arrays_of(model))
    trained = ps.tree.map(lambda a: a + 1, params)
    state = {"layers": [{}, {"layers": [{"running_mean": mx.full(4, 7.0)}]}]}
    save_weights(tmp_path / "one", model, trained, state)
    assert described(arrays_of(model)) == before
    ps.write_back(model, trained)
    model.layers[1].layers[0].running_mean = mx.full(4, 7.0)
    assert whole(tmp_path / "one") == described(arrays_of(model))
    save_weights(tmp_path / "two", model)
    assert whole(tmp_path / "two") == whole(tmp_path / "one")
    assert ps.tree.alike(model_state, ps.functional(model)[2])


def test_parameters_alone_are_written_under_their_paths(tmp_path):
    params = {"a": [mx.zeros(2), (mx.ones(3), {})], 3: mx.ones(1), "0": {"é/ .b": mx.ones(2), "none": None}}
    save_weights(tmp_path / "out", params)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == {"a.0", "a.1.0", "3", "0.é/ .b"}
    assert same_bits(load_weights(tmp_path / "out", like=params), params)


ODD = {
    "empty": mx.zeros((0, 3)),
    "scalar": mx.array(2.5),
    "nan": mx.array([float("nan"), float("inf"), -0.0]),
    "flipped": mx.arange(6).reshape(2, 3).T,
    "strided": mx.arange(10)[::3],
    "broadcast": mx.broadcast_to(mx.array([1.5, 2.0]), (3, 2)),
    "lazy": mx.ones(4) * 3,
    "half": mx.ones(3, mx.float16),
    "bool": mx.array([True, False]),
    "uint8": mx.array([1, 255], mx.uint8),
}


@pytest.mark.parametrize("limit", [None, 1, 24, 50])
def test_arrays_of_every_kind_keep_their_bits_in_files_of_any_size(tmp_path, limit):
    save_weights(tmp_path / "out", ODD, shard_bytes=limit)
    assert whole(tmp_path / "out") == described(ODD)
    assert same_bits(load_weights(tmp_path / "out", like=ODD), ODD)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    for file in files:
        held = contents(tmp_path / "out" / file).values()
        assert limit is None or sum(len(data) for *_, data in held) <= limit or len(held) == 1
    if limit is None:
        assert files == ["model.safetensors"]
    else:
        assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]


def test_one_file_is_written_and_replaced(tmp_path, model):
    file = tmp_path / "new" / "weights.safetensors"
    for _ in range(2):
        save_weights(file, model)
        assert contents(file) == described(arrays_of(model))
        assert metadata(file) == {"format": "mlx"}
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    for name, options in (
        ("config", {"config": {}}),
        ("base", {"base": tmp_path}),
        ("shard_bytes", {"shard_bytes": 9}),
    ):
        with pytest.raises(ValueError, match=rf"^checkpoint\.save_weights: {name} must .* one file"):
            save_weights(file, model, **options)
    save(tmp_path / "s.safetensors", {"w": mx.ones(9), "v": mx.ones(9)}, shard_bytes=36)
    for taken in ("s.safetensors", "s-00001-of-00002.safetensors"):
        with pytest.raises(FileExistsError, match=r"^checkpoint\.save_weights: .* delete that state"):
            save_weights(tmp_path / taken, model)
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"^checkpoint\.save_weights: path must be a file"):
        save_weights(tmp_path / "d.safetensors", model)


def test_a_directory_with_entries_and_a_file_are_never_touched(tmp_path, model, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^checkpoint\.save_weights: .*full is not empty, .*'notes'"):
        save_weights(tmp_path / "full", model)
    with pytest.raises(NotADirectoryError, match=r"^checkpoint\.save_weights: path must be a directory"):
        save_weights(tmp_path / "file", model)
    (tmp_path / "empty").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileExistsError, match=r"^checkpoint\.save_weights: .* working directory"):
        save_weights(".", model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("empty")
    save_weights("link", model)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    assert whole(tmp_path / "empty") == described(arrays_of(model))
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "empty", "link"}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_directory_without_permission_is_named(tmp_path, model):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        save_weights(tmp_path / "out", model)


LIMITED = """
import resource, signal, sys
import mlx.core as mx
from purestep.checkpoint import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
try:
    save_weights(sys.argv[1], {"a": mx.ones(1000), "b": mx.ones(1_000_000)}, shard_bytes=4000)
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cannot write 4000000 bytes to ")
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path, model):
    _, params, _ = ps.functional(model)
    state = ps.TrainState.create(params, ps.optimizers.sgd(0.1))
    twins = {"a": {"b": mx.ones(1)}, "a.b": mx.ones(1)}
    wrong = [
        (TypeError, r"model .*TrainState: give state\.params", [state]),
        (TypeError, r"model\.a .*Python number 3", [{"a": 3}]),
        (TypeError, r"model\.a .*numpy", [{"a": np.ones(2)}]),
        (ValueError, r"model must have arrays, got none", [{"a": {}}]),
        (ValueError, r"model must have arrays, got none", [nn.ReLU()]),
        (ValueError, r"params must have arrays, got none", [model, {}]),
        (ValueError, r"params must be None for a model that is no", [params, params]),
        (ValueError, r"(?s)params\.x is not in the module.*params\.embed\.weight has shape \(1,\), \(5, 4\)",
         [model, {"x": mx.ones(1), "embed": {"weight": mx.ones(1)}}]),
        (TypeError, r"params\.x .*Python number", [model, {"x": 1.0}]),
        (ValueError, r"model\.a is float64", [{"a": mx.array([1.0], mx.float64)}]),
        (ValueError, r"model\.__metadata__ .*safetensors keeps", [{"__metadata__": mx.ones(1)}]),
        (ValueError, r"""a\.b and "a\.b" would both be named a\.b""", [twins]),
        (ValueError, r"lone surrogate", [{"\ud800": mx.ones(1)}]),
    ]  # fmt: skip
    for kind, message, arguments in wrong:
        with pytest.raises(kind, match=r"^checkpoint\.save_weights: ") as error:
            save_weights(tmp_path / "out", *arguments)
        assert error.match(message), error.value
    for limit in (0, 1.5, "1"):
        with pytest.raises((ValueError, TypeError), match=r"^checkpoint\.save_weights: shard_bytes must"):
            save_weights(tmp_path / "out", model, shard_bytes=limit)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [None, "affine", "mxfp4"])
def test_adapters_are_refused_until_they_are_merged(tmp_path, mode):
    key = mx.random.key(1)
    with ps.rng.scope(key):
        base = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        if mode:
            nn.quantize(base, mode=mode)
    adapted = adapters.lora(base, "layers.*", rank=2, alpha=4, key=key)
    params = ps.tree.map(lambda a: mx.random.normal(a.shape, key=key), ps.functional(adapted)[1])
    with pytest.raises(ValueError, match=r"no adapters, got layers\.0\.lora_a: merge .*ps\.adapters\.merge"):
        save_weights(tmp_path / "out", adapted)
    ps.write_back(adapted, params)
    merged = adapters.merge(adapted)
    save_weights(tmp_path / "out", merged)
    x = mx.random.normal((2, 64), key=key)
    loaded = load_weights(tmp_path / "out", like=base)
    assert mx.array_equal(loaded(x), merged(x))
    assert not mx.allclose(loaded(x), base(x))
