"""Families of `mlx_lm`, tiny and random: ten losses equal those of a mutable loop on the same module."""

import importlib
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map_with_path

import purestep as ps

pytest.importorskip("mlx_lm")

from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

VOCABULARY, WIDTH, LENGTH, STEPS = 64, 64, 12, 10
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 1e4,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "tie_word_embeddings": False},
    "llama-tied": {**COMMON, "tie_word_embeddings": True},
    "qwen3": {**COMMON, "tie_word_embeddings": True},
    "gemma3_text": {**COMMON, "sliding_window": 8, "sliding_window_pattern": 2},
    "qwen3_moe": {**COMMON, **EXPERTS, "tie_word_embeddings": False},
    "mixtral": {
        **{k: v for k, v in COMMON.items() if k not in ("head_dim", "max_position_embeddings")},
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mamba": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "state_size": 8,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 32,
    },
}
LORA = {"rank": 4, "scale": 8.0, "dropout": 0.0}
# Where the losses of ten steps differ by rounding alone; bfloat16 rounds parameters to 8 bits.
TOLERANCES = {"full": 2e-5, "lora": 2e-5, "qlora": 2e-5, "remat": 2e-5, "bfloat16": 4e-3}
# MLX multiplies by the matrices of experts in float32 alone on a CPU.
KEPT = "switch_mlp"


def built(family, quantized=False):
    name = family.split("-")[0]
    module: Any = importlib.import_module(f"mlx_lm.models.{name}")
    with ps.rng.scope(mx.random.key(0)):
        model = module.Model(module.ModelArgs(model_type=name, **FAMILIES[family]))
        if quantized:
            nn.quantize(model, group_size=32, bits=4)
        mx.eval(model.parameters())
    return model


def batches():
    """Return batches as mlx-lm makes them: tokens, and where the targets of a row begin and end."""
    steps, ends = mx.random.split(mx.random.key(3))
    tokens = mx.cumsum(mx.random.randint(0, 3, (4 * STEPS, LENGTH), key=steps), axis=1) % VOCABULARY
    ends = mx.random.randint(6, LENGTH, (4 * STEPS,), key=ends)
    lengths = mx.stack([mx.full(ends.shape, 2, mx.int32), ends.astype(mx.int32)], axis=1)
    return list(zip(mx.split(tokens, STEPS), mx.split(lengths, STEPS), strict=True))


def pure(model, *, wrap=lambda loss_fn: loss_fn, compiled=False, microbatches=1, **options):
    """Return the losses of purestep."""
    apply, params, _ = ps.functional(model, **options)

    def loss_fn(params, batch, rng):
        tokens, lengths = batch
        inputs, targets = ps.losses.shift(tokens)
        places = mx.arange(1, tokens.shape[1])
        weights = (places >= lengths[:, :1]) & (places <= lengths[:, 1:])
        return ps.losses.cross_entropy(apply(params, inputs, rng=rng), targets, weights=weights)

    transform = ps.optimizers.adam(1e-3)
    state = ps.TrainState.create(params, transform, seed=0)
    step = ps.train_step(wrap(loss_fn), transform, microbatches=microbatches)
    step, found = ps.compiled(step) if compiled else step, []
    for batch in batches():
        state, metrics = step(state, batch)
        found.append(metrics["loss"].item())
    return found


def mutable(model):
    """Return the losses of MLX's own loop, which changes the module."""
    step = nn.value_and_grad(model, lambda *batch: default_loss(model, *batch)[0])
    optimizer, found = optim.Adam(1e-3, bias_correction=True), []
    model.train()
    for batch in batches():
        loss, gradients = step(*batch)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        found.append(loss.item())
    return found


def mutable_in_bfloat16(model):
    """Return the losses of a loop that casts float32 parameters to bfloat16 in each step."""

    def cast(path, p):
        return p if KEPT in path else p.astype(mx.bfloat16)

    masters: Any = model.trainable_parameters()
    optimizer, found = optim.Adam(1e-3, bias_correction=True), []

    def loss_fn(masters, batch):
        model.update(tree_map_with_path(cast, masters))
        return default_loss(model, *batch)[0]

    model.train()
    for batch in batches():
        loss, gradients = mx.value_and_grad(loss_fn)(masters, batch)
        masters = optimizer.apply_gradients(gradients, masters)
        mx.eval(masters, optimizer.state)
        found.append(loss.item())
    return found


def adapted_alike(family, quantized):
    """Return a model with mlx-lm's adapters, and one with purestep's and the same first matrices."""
    theirs = built(family, quantized)
    theirs.freeze()
    with ps.rng.scope(mx.random.key(7)):
        linear_to_lora_layers(theirs, 2, LORA)
    start = ps.functional(theirs)[1]
    layers = [path.removesuffix(".lora_a") for path in ps.tree.paths(start) if path.endswith("lora_a")]
    assert len(layers) >= 4
    ours = ps.adapters.lora(built(family, quantized), layers, rank=4, scale=8.0, key=mx.random.key(7))
    ps.write_back(ours, start)
    return ours, theirs


def both(family, mode, **options):
    """Return the losses of purestep and those of the mutable loop."""
    if mode in ("lora", "qlora"):
        ours, theirs = adapted_alike(family, quantized=mode == "qlora")
        return pure(ours, **options), mutable(theirs)
    model = built(family)
    if mode == "bfloat16":
        keep = f"*.{KEPT}.*" if "moe" in family or "mixtral" in family else ()
        options["wrap"] = partial(ps.compute_in, dtype=mx.bfloat16, keep=keep)
        return pure(model, **options), mutable_in_bfloat16(model)
    if mode == "remat":
        options["remat"] = "*.layers.*"
    return pure(model, **options), mutable(model)


def check(family, mode, **options):
    ours, theirs = both(family, mode, **options)
    assert len(ours) == STEPS
    assert abs(theirs[-1] - theirs[0]) > 0.1  # something is trained
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCES[mode])


@pytest.mark.parametrize("mode", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_losses_equal_those_of_the_mutable_loop(family, mode):
    check(family, mode)


@pytest.mark.parametrize("mode", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_losses_of_a_compiled_step_equal_them_too(family, mode, full):
    if not full and (family, mode) not in (("qwen3", "qlora"), ("qwen3", "remat")):
        pytest.skip("builds many kernels: --full")
    check(family, mode, compiled=True, microbatches=2)
