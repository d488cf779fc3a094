"""mlx-lm loads what `save_weights` writes and computes the same with it; and the other way round."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep import adapters
from purestep.checkpoint import load_weights, save_weights
from tests.trees import same_bits

pytest.importorskip("mlx_lm")

from mlx_lm.models import llama, qwen3_moe
from mlx_lm.utils import load, load_model, quantize_model, save_model

TOKENS = mx.array([[1, 2, 3, 4, 5]])
ARGS: Any = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
}
EXPERTS: Any = {
    **ARGS,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "norm_topk_prob": True,
}
FAMILIES = {"llama": (llama, ARGS), "qwen3_moe": (qwen3_moe, EXPERTS)}


def built(name="llama", seed=0, quantization=None, **changes):
    """Return a model in bfloat16, quantized as mlx-lm does it, and its configuration."""
    family, arguments = FAMILIES[name]
    config = {**arguments, **changes}
    with ps.rng.scope(mx.random.key(seed)):
        model = family.Model(family.ModelArgs.from_dict(config))
        model.set_dtype(mx.bfloat16)
        if quantization:
            model, config = quantize_model(model, config, **quantization)
        mx.eval(model.parameters())
    return model, config


def reloaded(path):
    with ps.rng.scope(mx.random.key(9)):
        return load_model(Path(path))[0]


@pytest.mark.parametrize("limit", [None, 20_000])
@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_model_is_loaded_strictly(tmp_path, tied, limit):
    model, config = built(tie_word_embeddings=tied)
    trained = ps.tree.map(lambda a: a * 1.5, ps.functional(model)[1])
    save_weights(tmp_path / "out", model, trained, config=config, shard_bytes=limit)
    ps.write_back(model, trained)
    again = reloaded(tmp_path / "out")
    assert same_bits(again.parameters(), model.parameters())
    assert mx.array_equal(again(TOKENS), model(TOKENS))
    save_weights(tmp_path / "args", model, config=model.args)
    assert mx.array_equal(reloaded(tmp_path / "args")(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "quantization",
    [
        {"group_size": 64, "bits": 4},
        {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        {"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": True},
        {
            "group_size": 32,
            "bits": 4,
            "quant_predicate": lambda path, _: {"group_size": 64, "bits": 8} if "embed" in path else True,
        },
    ],
    ids=["affine", "mxfp8", "nvfp4 with global scales", "mixed"],
)
def test_a_quantized_model_is_loaded_from_the_arguments_alone(tmp_path, name, quantization):
    model, _ = built(name, quantization=quantization)
    save_weights(tmp_path / "out", model, config=model.args)
    again = reloaded(tmp_path / "out")
    assert same_bits(again.parameters(), model.parameters())
    if "global_scale" not in quantization:  # which MLX computes on a GPU alone
        assert mx.array_equal(again(TOKENS), model(TOKENS))


def test_a_merged_model_and_its_tokenizer_are_loaded_by_name(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    model, config = built(quantization={"group_size": 64, "bits": 4})
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "</s>": 3}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base = tmp_path / "base"
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(base)
    (base / "config.json").write_text(json.dumps(config))
    key = mx.random.key(1)
    adapted = adapters.lora(model, "*.q_proj", rank=4, alpha=8, key=key)
    params = ps.tree.map(lambda a: mx.random.normal(a.shape, key=key), ps.functional(adapted)[1])
    ps.write_back(adapted, params)
    merged = adapters.merge(adapted)
    save_weights(tmp_path / "out", merged, base=base)
    with ps.rng.scope(mx.random.key(9)):
        again, tokenizer = load(str(tmp_path / "out"))[:2]
    assert mx.array_equal(again(TOKENS), merged(TOKENS))
    assert not mx.allclose(again(TOKENS), model(TOKENS))
    assert tokenizer.encode("a b a") == [1, 2, 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_mlx_lm_writes_is_read_into_a_module(tmp_path, name):
    model, _ = built(name, quantization={"group_size": 64, "bits": 4})
    save_model(tmp_path, model)
    like, _ = built(name, seed=1, quantization={"group_size": 64, "bits": 4})
    before = like(TOKENS)
    loaded = load_weights(tmp_path, like=like)
    assert type(loaded) is type(model)
    assert mx.array_equal(loaded(TOKENS), model(TOKENS))
    assert mx.array_equal(like(TOKENS), before)


def test_sanitize_turns_the_arrays_of_hugging_face_into_those_of_the_model(tmp_path):
    """Experts are one array each there, and stacked in the model."""
    model, _ = built("qwen3_moe")
    theirs = {}
    for path, array in ps.tree.items(model.parameters()):
        if ".switch_mlp." in path:
            start, _, end = path.partition(".switch_mlp.")
            theirs |= {f"{start}.experts.{e}.{end}": each for e, each in enumerate(array)}
        else:
            theirs[path] = array
    save_weights(tmp_path / "out", theirs, shard_bytes=50_000)
    like, _ = built("qwen3_moe", seed=1)
    loaded = load_weights(tmp_path / "out", like=like, convert=like.sanitize)
    assert same_bits(loaded.parameters(), model.parameters())
    params = load_weights(tmp_path / "out", like=ps.functional(like)[1], convert=like.sanitize)
    ps.write_back(like, params)
    assert same_bits(like.parameters(), model.parameters())


def test_a_dequantized_model_loses_the_entries_of_its_base(tmp_path):
    _, config = built(quantization={"group_size": 64, "bits": 4})
    plain, _ = built()
    save_weights(tmp_path / "out", plain, config=config)
    again = reloaded(tmp_path / "out")
    assert not any(isinstance(part, nn.QuantizedLinear) for part in again.modules())
    assert mx.array_equal(again(TOKENS), plain(TOKENS))
