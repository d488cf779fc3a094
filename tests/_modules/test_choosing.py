"""`trainable=` chooses by path what is trained."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from tests._modules.building import built


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)

    def __call__(self, x):
        return x + self.linear(self.norm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.layers = [Block(), Block()]
        self.batch = nn.BatchNorm(32)
        self.head = nn.Linear(32, 8, bias=False)
        self.head.weight = self.embed.weight

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.batch(x.reshape(-1, 32)))


TOKENS = mx.array([[1, 2, 3]])
NORMS = ["layers.0.norm.weight", "layers.0.norm.bias", "layers.1.norm.weight", "layers.1.norm.bias"]


def paths(trainable, module=None):
    _, params, model_state = ps.functional(built(Model) if module is None else module, trainable=trainable)
    assert not {*ps.tree.paths(params)} & {*ps.tree.paths(model_state)}
    assert len(ps.tree.leaves((params, model_state))) == 13
    return {*ps.tree.paths(params)}


def test_patterns_choose_arrays_by_their_path_or_that_of_a_layer():
    assert paths("layers.*.norm") == {*NORMS}
    assert paths(["layers.0.norm", "*.bias"]) == {
        *NORMS[:2],
        "layers.1.norm.bias",
        "layers.0.linear.bias",
        "layers.1.linear.bias",
        "batch.bias",
    }
    assert paths("batch") == {"batch.weight", "batch.bias"}  # its statistics are not trained
    assert paths("*") == {*ps.tree.paths(ps.functional(built(Model))[1])}
    assert paths("*", built(Model).freeze()) == paths("*")
    assert paths("head") == paths("embed") == {"embed.weight"}  # tied


def test_chosen_arrays_alone_are_trained_and_written_back():
    module = built(Model)
    apply, params, model_state = ps.functional(module, trainable="layers.*.norm")
    assert mx.array_equal(apply(params, TOKENS), module.eval()(TOKENS))
    state = ps.TrainState.create(params, ps.optimizers.adam(0.1), model_state=model_state)

    def loss_fn(params, model_state, batch, rng):
        out, model_state = apply(params, batch, rng=rng, model_state=model_state)
        return out.square().mean(), {}, model_state

    state, _ = ps.train_step(loss_fn, ps.optimizers.adam(0.1), stateful=True)(state, TOKENS)
    want = apply(state.params, TOKENS, model_state=state.model_state)[0]
    before = mx.array(module.embed.weight)
    ps.write_back(module, state.params, state.model_state, trainable="layers.*.norm")
    assert mx.allclose(module.eval()(TOKENS), want, atol=1e-6)
    assert mx.array_equal(module.embed.weight, before)
    with pytest.raises(ValueError, match="write_back: params does not fit the module: it lacks"):
        ps.write_back(module, state.params)


def test_bad_patterns_are_refused():
    def refused(message, trainable, module=None):
        with pytest.raises((ValueError, TypeError), match=message):
            ps.functional(built(Model) if module is None else module, trainable=trainable)

    refused(r"functional: trainable pattern 'layers.\*.nrm' matches none .*layers.0.norm", "layers.*.nrm")
    refused("trainable pattern 'x' matches none", ["*", "x"])
    refused("trainable must have at least one pattern", [])
    refused("a pattern must be a string", [1])
    refused("matches only running statistics, as batch.running_mean", "batch.running_*")
    module = built(Model)
    with ps.rng.scope(mx.random.key(0)):  # nn.quantize draws weights and drops them
        nn.quantize(module, group_size=32, class_predicate=lambda path, _: path.endswith("linear"))
    message = "trainable must match floating-point arrays, but layers.0.linear.weight is uint32, as quantized"
    refused(message, "layers.0", module)
    assert {*NORMS} == {*ps.tree.paths(ps.functional(module, trainable="*.norm")[1])}


def test_an_unfrozen_quantized_model_is_refused_before_a_step():
    module = built(Model)
    with ps.rng.scope(mx.random.key(0)):
        nn.quantize(module, group_size=32, class_predicate=lambda path, _: path.endswith("linear"))
    assert "layers.0.linear.weight" not in ps.tree.paths(ps.functional(module)[1])  # frozen by MLX
    module.unfreeze()
    params = ps.functional(module)[1]
    message = r"TrainState.create: params must be floating, got .*uint32 at layers.0.linear.weight"
    with pytest.raises(ValueError, match=message):
        ps.TrainState.create(params, ps.optimizers.adam(0.1))
