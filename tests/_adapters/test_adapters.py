"""LoRA and DoRA: equal to the base at the start, to a formula after, merged, stored, and refused in words."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import adapters

KEY = mx.random.key(7)
TOKENS = mx.random.randint(0, 64, (2, 6), key=mx.random.key(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(64, 64), nn.Linear(64, 32, bias=False)
        self.out, self.norm = nn.Linear(32, 64), nn.RMSNorm(64)

    def __call__(self, x):
        h = self.norm(x)
        return x + self.q_proj(h) + self.out(mx.tanh(self.v_proj(h)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.layers = [Block(), Block()]

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.as_linear(x)


@pytest.fixture
def model():
    with ps.rng.scope(mx.random.key(0)):
        built = Model()
        mx.eval(built.parameters())
    return built


def drawn(module, seed=5):
    """Give every adapter values other than those of the start."""
    rows = adapters.report(module).rows
    for number, row in enumerate(rows):
        layer = dict(module.named_modules())[row.path]
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(seed + number))
    return module


def quantized(module, **options):
    with ps.rng.scope(mx.random.key(0)):
        nn.quantize(module, class_predicate=lambda path, _: "proj" in path or path == "embed", **options)
    return module


MODES = [None, {"group_size": 32, "bits": 8}, {"mode": "mxfp4"}, {"mode": "nvfp4"}]
KINDS = {"lora": adapters.lora, "dora": adapters.dora}


@pytest.mark.parametrize("mode", MODES)
def test_at_the_start_the_copy_computes_what_the_module_does(model, mode):
    model = model if mode is None else quantized(model, **mode)
    before = model(TOKENS)
    copy = adapters.lora(model, ["*_proj", "embed"], rank=4, alpha=8, key=KEY)
    assert mx.array_equal(copy(TOKENS), before)
    assert mx.allclose(adapters.dora(model, "*_proj", rank=4, alpha=8, key=KEY)(TOKENS), before, atol=1e-3)
    assert type(model.embed) in (nn.Embedding, nn.QuantizedEmbedding)
    assert mx.array_equal(model(TOKENS), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES[:2])
def test_merged_equals_adapted_to_rounding(model, kind, mode):
    model = model if mode is None else quantized(model, **mode)
    patterns = ["*_proj", "embed"] if kind == "lora" else "*_proj"
    copy = drawn(KINDS[kind](model, patterns, rank=4, scale=2.0, key=KEY))
    out, merged = copy(TOKENS), adapters.merge(copy)
    assert not mx.allclose(out, model(TOKENS), atol=0.1)
    assert not adapters.report(merged).rows
    distance = mx.linalg.norm(merged(TOKENS) - out) / mx.linalg.norm(out)
    assert distance.item() < (1e-5 if mode is None else 2e-2)
    assert mx.array_equal(adapters.remove(copy)(TOKENS), model(TOKENS))


def test_lora_and_dora_are_those_of_the_papers():
    with ps.rng.scope(mx.random.key(0)):
        base = nn.Sequential(nn.Linear(6, 4))
    x = mx.random.normal((3, 6), key=mx.random.key(2))
    plain, bias = np.array(base.layers[0].weight), np.array(base.layers[0].bias)
    for kind, scale in (("lora", 3.0), ("dora", 3.0)):
        copy = drawn(KINDS[kind](base, "layers.0", rank=2, alpha=6, key=KEY))
        layer = copy.layers[0]
        weight = plain + scale * (np.array(layer.lora_a) @ np.array(layer.lora_b)).T
        if kind == "dora":
            layer.m = layer.m * 1.5
            length = 1.5 * np.linalg.norm(plain, axis=1)
            weight = (length / np.linalg.norm(weight, axis=1))[:, None] * weight
        assert np.allclose(copy(x), np.array(x) @ weight.T + bias, atol=1e-5)


def test_the_scale_of_stabilized_rank():
    with ps.rng.scope(mx.random.key(0)):
        base = nn.Sequential(nn.Linear(16, 16))
    scales = [
        adapters.lora(base, "layers.0", rank=4, key=KEY, **options).layers[0].scale
        for options in ({"alpha": 8}, {"alpha": 8, "rank_stabilized": True}, {"scale": 20.0})
    ]
    assert scales == [2.0, 4.0, 20.0]


def test_only_adapters_are_trained_and_have_a_state(model):
    copy = adapters.lora(model, "layers.*.q_proj", rank=4, alpha=8, key=KEY)
    _, params, held = ps.functional(copy)
    assert {path.rpartition(".")[2] for path in ps.tree.paths(params)} == {"lora_a", "lora_b"}
    report = adapters.report(copy)
    assert report.trained == ps.tree.size(params) == 2 * (64 * 4 + 4 * 64)
    assert report.frozen == ps.tree.size(held)
    state = ps.TrainState.create(params, ps.optimizers.adam(1e-3))
    size = sum(leaf.nbytes for leaf in ps.tree.leaves(state.opt_state))
    assert size <= 1.01 * 8 * report.trained
    assert str(report).splitlines()[0] == "layers.0.q_proj  lora  rank 4  512 parameters"


def test_activations_keep_their_dtype_and_dropout_is_a_function_of_the_key(model):
    model.set_dtype(mx.bfloat16)
    copy = drawn(adapters.lora(model, ["*_proj", "embed"], rank=4, alpha=8, dropout=0.5, key=KEY))
    apply, params, _ = ps.functional(copy)
    assert apply(params, TOKENS).dtype == mx.bfloat16
    assert {leaf.dtype for leaf in ps.tree.leaves(params)} == {mx.float32}
    first, again, other = (apply(params, TOKENS, rng=mx.random.key(k)) for k in (1, 1, 2))
    assert mx.array_equal(first, again)
    assert not mx.array_equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_is_exact(model, kind, tmp_path):
    copy = drawn(KINDS[kind](model, "*_proj", rank=4, scale=2.0, key=KEY))
    adapters.save(tmp_path / "run", copy)
    loaded = adapters.load(tmp_path / "run", model)
    assert mx.array_equal(loaded(TOKENS), copy(TOKENS))
    assert adapters.report(loaded) == adapters.report(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_the_files_and_trains_the_same(kind, tmp_path):
    llama = pytest.importorskip("mlx_lm.models.llama")
    utils = pytest.importorskip("mlx_lm.tuner.utils")

    def built():
        with ps.rng.scope(mx.random.key(0)):
            model = llama.Model(llama.ModelArgs("llama", 64, 2, 128, 4, 1e-5, 64))
            mx.eval(model.parameters())
        return model

    copy = drawn(KINDS[kind](built(), "model.layers.*.self_attn.?_proj", rank=4, scale=2.0, key=KEY))
    adapters.save(tmp_path, copy)
    with ps.rng.scope(mx.random.key(3)):
        theirs = utils.load_adapters(built(), str(tmp_path))
    assert mx.allclose(theirs(TOKENS), copy(TOKENS), atol=1e-5)
    losses = []
    theirs.freeze()
    theirs.unfreeze(keys=["lora_a", "lora_b", "m"], strict=False)
    for module in (copy, theirs):
        apply, params, _ = ps.functional(module)

        def loss_fn(params, batch, rng, apply=apply):
            inputs, targets = ps.losses.shift(batch)
            return ps.losses.cross_entropy(apply(params, inputs), targets)

        transform = ps.optimizers.adam(1e-2)
        step, state = ps.train_step(loss_fn, transform), ps.TrainState.create(params, transform)
        found = []
        for _ in range(10):
            state, metrics = step(state, TOKENS)
            found.append(metrics["loss"].item())
        losses.append(found)
    assert losses[0][-1] < losses[0][0]
    assert np.allclose(losses[0], losses[1], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patterns": "layers.*.k_proj"}, r"'layers\.\*\.k_proj' matches none .*layers\.0\.q_proj"),
        ({"patterns": "layers.0.norm"}, r"layers\.0\.norm must be .*RMSNorm"),
        ({"patterns": []}, "at least one pattern"),
        ({"rank": 33}, r"rank must be at most 32 for layers\.0\.v_proj, got 33"),
        ({"rank": 0}, "rank .*0"),
        ({"alpha": None}, "alpha and scale"),
        ({"scale": 2.0}, "alpha and scale"),
        ({"dropout": 1.0}, r"dropout .*1\.0"),
    ],
)
def test_mistakes_are_refused(model, options, words):
    given = {"patterns": "*_proj", "rank": 4, "alpha": 8, "key": KEY, **options}
    with pytest.raises(ValueError, match=f"^lora: .*{words}"):
        adapters.lora(model, given.pop("patterns"), **given)


def test_modules_with_and_without_adapters_are_told_apart(model, tmp_path):
    copy = adapters.lora(model, "layers.0.q_proj", rank=4, alpha=8, key=KEY)
    with pytest.raises(ValueError, match=r"^lora: .*'layers\.0\.q_proj'|^lora: layers\.0\.q_proj already"):
        adapters.lora(copy, "layers.0.q_proj", rank=4, alpha=8, key=KEY)
    for function in (adapters.merge, adapters.remove):
        with pytest.raises(ValueError, match=f"^{function.__name__}: .*none"):
            function(model)
    with pytest.raises(ValueError, match=r"^adapters\.save: .*none"):
        adapters.save(tmp_path, model)
    with pytest.raises(TypeError, match="^lora: module"):
        adapters.lora(3, "*", rank=4, alpha=8, key=KEY)
    with pytest.raises(ValueError, match="^lora: .*key"):
        adapters.lora(model, "*_proj", rank=4, alpha=8, key=3)


def test_files_of_another_model_or_rank_are_refused(model, tmp_path):
    adapters.save(tmp_path, adapters.lora(model, "*_proj", rank=4, alpha=8, key=KEY))
    with (
        ps.rng.scope(mx.random.key(0)),
        pytest.raises(ValueError, match=r"(?s)^adapters\.load: .*layers\.0\.q_proj is not in"),
    ):
        adapters.load(tmp_path, nn.Sequential(nn.Linear(4, 4)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    def changed(**options):
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({**config, "lora_parameters": {**config["lora_parameters"], **options}})
        )

    changed(rank=3)
    with pytest.raises(
        ValueError, match=r"^adapters\.load: layers\.0\.q_proj\.lora_a has shape \(64, 4\).*\(64, 3\)"
    ):
        adapters.load(tmp_path, model)
    changed(rank="4")
    with pytest.raises(TypeError, match=r"^adapters\.load: rank"):
        adapters.load(tmp_path, model)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^adapters\.load: .*adapter_config\.json"):
        adapters.load(tmp_path, model)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "fine_tune_type": "full"}))
    with pytest.raises(ValueError, match=r"^adapters\.load: fine_tune_type .*'full'"):
        adapters.load(tmp_path, model)


def test_adapters_that_differ_cannot_be_stored(model, tmp_path):
    copy = adapters.lora(model, "layers.0.q_proj", rank=4, alpha=8, key=KEY)
    copy = adapters.lora(copy, "layers.1.q_proj", rank=2, alpha=8, key=KEY)
    assert [row.rank for row in adapters.report(copy).rows] == [4, 2]
    with pytest.raises(ValueError, match=r"^adapters\.save: .*rank 4.*rank 2"):
        adapters.save(tmp_path, copy)
