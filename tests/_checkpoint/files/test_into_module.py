"""Weights of files in a copy of a module: every array, tied ones under any of their names."""

import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

import purestep as ps
from purestep.checkpoint import RestoreWarning, load_weights
from tests.refusals import assert_listed
from tests.trees import same_bits


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = [nn.Linear(4, 4), nn.BatchNorm(4), nn.Dropout(0.1)]
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.body[0].freeze()

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.body:
            x = layer(x)
        return self.head(x)


TOKENS = mx.array([0, 1, 4])


def net(seed):
    with ps.rng.scope(mx.random.key(seed)):
        model = Net()
        model.body[1].running_mean = mx.full(4, float(seed))
        mx.eval(model.parameters())
    return model.eval()


def arrays(model):
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("dropped", [(), ("head.weight",), ("embed.weight",)])
def test_a_copy_has_every_array_and_stays_tied_and_frozen(tmp_path, dropped):
    model, like = net(3), net(4)
    before = arrays(like)
    held = {name: array for name, array in arrays(model).items() if name not in dropped}
    save_file(held, tmp_path / "m.safetensors", metadata={"format": "pt"})
    loaded = load_weights(tmp_path / "m.safetensors", like=like)
    (tmp_path / "m.safetensors").unlink()
    assert type(loaded) is Net
    assert same_bits(loaded.parameters(), model.parameters())
    assert mx.array_equal(loaded(TOKENS), model(TOKENS))
    assert loaded.head.weight is loaded.embed.weight
    assert not loaded.training
    assert ps.tree.paths(ps.functional(loaded)[1]) == ps.tree.paths(ps.functional(model)[1])
    assert all(np.array_equal(array, before[name]) for name, array in arrays(like).items())
    apply, params, _ = ps.functional(loaded)
    assert mx.array_equal(apply(params, TOKENS), model(TOKENS))


def test_two_arrays_for_one_are_refused(tmp_path):
    held = arrays(net(3))
    save_file({**held, "head.weight": held["head.weight"] + 1}, tmp_path / "m.safetensors")
    with pytest.raises(
        ValueError, match=r"^checkpoint\.load_weights: embed\.weight and head\.weight are one array in like"
    ):
        load_weights(tmp_path / "m.safetensors", like=net(4))
    held["embed.weight"] = held["head.weight"] = held["head.weight"] * np.float32("nan")
    save_file(held, tmp_path / "m.safetensors")
    assert mx.isnan(load_weights(tmp_path / "m.safetensors", like=net(4)).head.weight).all()


def test_differences_are_listed_or_accepted(tmp_path):
    held = {name: array.astype(np.float16) for name, array in arrays(net(3)).items() if "running" not in name}
    held |= {"extra": np.zeros(1, np.float16), "body.0.weight": np.zeros((4, 3), np.float16)}
    del held["head.weight"]
    save_file(held, tmp_path / "m.safetensors")
    like = net(4)
    with pytest.raises(ValueError, match=r"^checkpoint\.load_weights: .*does not fit like") as error:
        load_weights(tmp_path / "m.safetensors", like=like)
    assert_listed(
        error.value,
        "extra is in the file, not in like",
        "body.0.weight ... (4, 3) in the file, (4, 4) in like",
        *(f"body.1.running_{name} is in like, not in the file" for name in ("mean", "var")),
        *(f"{name} ... float16 ... cast=True" for name in ("body.0.bias", "body.1.weight", "body.1.bias")),
        *(f"{name} ... float16 ... cast=True" for name in ("embed.weight", "head.weight")),
    )
    options = {"cast": True, "partial": ["extra", "*running*", "body.0.weight"]}
    with pytest.warns(RestoreWarning, match=r"embed\.weight was cast from float16"):
        loaded = load_weights(tmp_path / "m.safetensors", like=like, **options)
    assert {leaf.dtype for leaf in ps.tree.leaves(loaded.parameters())} == {mx.float32}
    assert mx.array_equal(loaded.body[0].weight, like.body[0].weight)
    assert loaded.body[1].running_mean.tolist() == [4.0] * 4
    loaded.body[0].weight[0] = 9.0
    assert not mx.array_equal(loaded.body[0].weight, like.body[0].weight)  # they share no array


def test_quantized_weights_are_read_into_a_module_of_the_same_quantization(tmp_path):
    def quantized(seed, bits):
        with ps.rng.scope(mx.random.key(seed)):
            module = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
            nn.quantize(module, group_size=32, bits=bits)
        return module

    mx.save_safetensors(
        str(tmp_path / "m.safetensors"), dict(tree_flatten(quantized(1, 4).parameters())), {"format": "mlx"}
    )
    x = mx.linspace(-1, 1, 64).reshape(1, 64)
    loaded = load_weights(tmp_path / "m.safetensors", like=quantized(2, 4))
    assert mx.array_equal(loaded(x), quantized(1, 4)(x))
    with pytest.raises(ValueError, match=r"layers\.0\.weight has shape \(32, 8\) in the file, \(32, 16\)"):
        load_weights(tmp_path / "m.safetensors", like=quantized(2, 8))


def test_a_module_that_cannot_be_copied_is_named(tmp_path):
    module = net(3)
    module.generator = (number for number in ())
    save_file(arrays(module), tmp_path / "m.safetensors")
    with pytest.raises(
        ValueError, match=r"^checkpoint\.load_weights: like must .* copied, but generator .*ps\.write_back"
    ):
        load_weights(tmp_path / "m.safetensors", like=module)
