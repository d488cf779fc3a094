"""Side by side with mlx-lm: its layers, its expert layers, its loader."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import adapters
from purestep._adapters import kinds
from tests._adapters.models import KEY, same, trained

pytest.importorskip("mlx_lm")

from mlx_lm.models import llama, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import save_config

LAYERS = ["*.q_proj", "*.v_proj", "*.down_proj"]
TOKENS = mx.array([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])
ARGS: Any = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
}
EXPERTS: Any = dict(
    ARGS,
    model_type="qwen3_moe",
    num_experts=4,
    num_experts_per_tok=2,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    moe_intermediate_size=64,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=1e4,
    tie_word_embeddings=False,
    max_position_embeddings=128,
    norm_topk_prob=True,
)


def built(arguments=ARGS, dtype=mx.float32, mode=None, **options):
    """Return a model with first weights that do not depend on the global stream."""
    family: Any = llama if arguments is ARGS else qwen3_moe
    with ps.rng.scope(mx.random.key(0)):
        model = family.Model(family.ModelArgs(**arguments))
        model.set_dtype(dtype)
        if mode:
            nn.quantize(model, mode=mode, **options)
        mx.eval(model.parameters())
    return model


def of_mlx_lm(model, layers, keys, rank=4, scale=2.0, dora=False):
    """Return the model with adapters of mlx-lm, which changes it."""
    model.freeze()
    with ps.rng.scope(KEY):
        linear_to_lora_layers(
            model, layers, {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}, use_dora=dora
        )
    return model


def losses(model, steps=10):
    apply, params, _ = ps.functional(model)

    def loss_fn(params, batch, rng):
        inputs, targets = ps.losses.shift(batch)
        return ps.losses.cross_entropy(apply(params, inputs, rng=rng), targets)

    transform = ps.optimizers.adam(1e-2)
    state = ps.TrainState.create(params, transform, seed=0)
    step, found = ps.train_step(loss_fn, transform), []
    for _ in range(steps):
        state, metrics = step(state, TOKENS)
        found.append(metrics["loss"].item())
    return found


KEYS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "model.embed_tokens"]


@pytest.mark.parametrize("mode", [None, "affine", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_ten_losses_equal_those_of_mlx_lms_layers(method, mode):
    if method == "dora" and mode:
        keys, patterns = KEYS[:3], LAYERS  # mlx-lm has no DoRA of quantized embeddings
    else:
        keys, patterns = KEYS, [*LAYERS, "model.embed_tokens"]
    theirs = of_mlx_lm(built(mode=mode), 2, keys, dora=method == "dora")
    ours = getattr(adapters, method)(built(mode=mode), patterns, rank=4, scale=2.0, key=KEY)
    start = ps.functional(theirs)[1]
    assert {*ps.tree.paths(start)} == {*ps.tree.paths(ps.functional(ours)[1])}
    ps.write_back(ours, start)
    want = losses(theirs)
    assert want[-1] < want[0] - 0.1
    np.testing.assert_allclose(losses(ours), want, rtol=1e-5 if mode is None else 1e-4)


@pytest.mark.parametrize("mode", [None, "affine", "nvfp4"])
def test_expert_layers(mode):
    size = {"group_size": 16, "bits": 4} if mode == "nvfp4" else {"group_size": 64, "bits": 4}
    base = built(EXPERTS, mode=mode, **size)
    keys = ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj"]
    theirs = of_mlx_lm(built(EXPERTS, mode=mode, **size), 2, keys)
    patterns = ["*.switch_mlp.gate_proj", "*.switch_mlp.down_proj"]
    ours = adapters.lora(base, patterns, rank=4, scale=2.0, key=KEY)
    assert mx.array_equal(ours(TOKENS), base(TOKENS))
    start = ps.functional(theirs)[1]
    ps.write_back(ours, start)
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-5 if mode is None else 1e-4)
    if mode is None:
        for add in (adapters.lora, adapters.dora):
            moved = trained(add(base, patterns, rank=4, alpha=4, key=KEY))
            many = mx.broadcast_to(mx.arange(20), (4, 20))  # enough tokens to be sorted by expert
            np.testing.assert_allclose(
                np.array(adapters.merge(moved)(many)), np.array(moved(many)), rtol=1e-5, atol=1e-5
            )
            assert not np.allclose(np.array(moved(many)), np.array(base(many)), atol=1e-3)
    assert same(adapters.remove(trained(ours)).parameters(), base.parameters())
    report = adapters.report(ours)
    assert report.rows[0].parameters == 4 * 4 * (64 + 64)


def test_a_global_scale_of_experts_is_kept():
    base = built(EXPERTS)
    for block in base.layers:
        old = block.mlp.switch_mlp.gate_proj
        with ps.rng.scope(KEY):
            block.mlp.switch_mlp.gate_proj = old.to_quantized(16, 4, "nvfp4", global_scale=True)
    moved = trained(adapters.lora(base, "*.gate_proj", rank=4, alpha=4, key=KEY))
    assert same(adapters.remove(moved).parameters(), base.parameters())
    merged: Any = adapters.merge(moved)
    layer: Any = moved.layers[0].mlp.switch_mlp.gate_proj
    new = merged.layers[0].mlp.switch_mlp.gate_proj
    want, found = layer.merged_weight(), kinds.dense(new)
    assert new.global_scale.tolist() == mx.abs(want).max(axis=(1, 2)).tolist()
    assert mx.abs(found - want).max().item() < 0.2 * mx.abs(want).max().item()


def test_experts_that_were_quantized_without_sizes_are_adapted():
    """`nn.quantize(model, mode="nvfp4")` leaves `None` for the bits of mlx-lm's expert layers."""
    base = built(EXPERTS, mode="nvfp4")
    moved = trained(adapters.lora(base, "*.gate_proj", rank=4, alpha=4, key=KEY))
    merged = adapters.merge(moved)
    assert not mx.array_equal(merged(TOKENS), base(TOKENS))
    assert mx.array_equal(adapters.remove(moved)(TOKENS), base(TOKENS))


@pytest.mark.parametrize("mode", [None, "affine", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    "patterns", [LAYERS, ["model.layers.0.*.q_proj"], ["*.1.mlp.*_proj", "*.embed_tokens"]]
)
def test_mlx_lm_loads_saved_adapters_with_equal_logits(patterns, method, mode, tmp_path):
    if mode and method == "dora" and "*.embed_tokens" in patterns:
        pytest.skip("mlx-lm has no DoRA of quantized embeddings")
    moved = trained(
        getattr(adapters, method)(built(mode=mode), patterns, rank=4, alpha=8, dropout=0.1, key=KEY)
    )
    adapters.save(tmp_path, moved)
    with ps.rng.scope(KEY):  # mlx-lm draws first weights
        theirs = load_adapters(built(mode=mode), str(tmp_path))
    theirs.eval()
    np.testing.assert_allclose(np.array(theirs(TOKENS)), np.array(moved.eval()(TOKENS)), rtol=1e-5, atol=2e-5)
    # And the way back: their arrays in our layers.
    back = adapters.load(tmp_path, built(mode=mode)).eval()
    assert mx.array_equal(back(TOKENS), moved(TOKENS))


def test_what_mlx_lm_saved_is_loaded(tmp_path):
    theirs = trained(of_mlx_lm(built(), 1, ["self_attn.q_proj"], scale=20.0)).eval()
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), dict(ps.tree.items(theirs.trainable_parameters()))
    )
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    save_config(
        {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters, "iters": 10},
        tmp_path / "adapter_config.json",
    )
    back = adapters.load(tmp_path, built()).eval()
    np.testing.assert_allclose(np.array(back(TOKENS)), np.array(theirs(TOKENS)), rtol=1e-5, atol=1e-5)
    assert [each.path for each in adapters.report(back).rows] == ["model.layers.1.self_attn.q_proj"]


def test_mlx_lm_refuses_a_directory_that_is_not_in_its_layout(tmp_path):
    adapters.save(tmp_path, adapters.lora(built(), LAYERS, rank=4, alpha=4, key=KEY), mlx_lm=False)
    with pytest.raises(FileNotFoundError):
        load_adapters(built(), str(tmp_path))


def test_a_merged_model_has_the_weights_of_the_plain_model():
    moved = trained(adapters.lora(built(mode="affine"), LAYERS, rank=4, alpha=4, key=KEY)).eval()
    merged = adapters.merge(moved).eval()
    again = built(mode="affine")
    again.load_weights(list(ps.tree.items(merged.parameters())), strict=True)
    assert mx.array_equal(again(TOKENS), merged(TOKENS))


def test_layers_of_mlx_lms_tuner_are_left_to_it():
    theirs = of_mlx_lm(built(), 2, ["self_attn.q_proj"])
    _, params, _ = ps.functional(theirs)
    assert {path.rpartition(".")[2] for path in ps.tree.paths(params)} == {"lora_a", "lora_b"}
    with pytest.raises(ValueError, match="already has an adapter"):
        adapters.lora(theirs, "*.q_proj.linear", rank=4, alpha=4, key=KEY)
    for function in (adapters.merge, adapters.remove):
        with pytest.raises(ValueError, match="module must have adapters, got none"):
            function(theirs)


def test_bfloat16_activations_of_a_model_stay_so():
    base = built(dtype=mx.bfloat16)
    moved = trained(adapters.lora(base, [*LAYERS, "*.embed_tokens"], rank=4, alpha=4, key=KEY))
    assert moved(TOKENS).dtype == base(TOKENS).dtype == mx.bfloat16
    layer: Any = moved.layers[0].self_attn.q_proj
    for dtype in (mx.bfloat16, mx.float16, mx.float32):
        assert (
            layer(mx.ones((2, 64), dtype)).dtype
            == base.layers[0].self_attn.q_proj(mx.ones((2, 64), dtype)).dtype
        )
