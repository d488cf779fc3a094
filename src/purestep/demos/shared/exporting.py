"""A model of bytes as a directory that mlx-lm loads, and a comparison with mlx-lm."""

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.disk import atomic
from purestep.demos.models.llama import BASE, BYTES, EPSILON, Llama
from purestep.demos.shared.session import Session

_PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}  # bytes that a tokenizer writes as they are


def export(directory: Path, model: Llama, context: int) -> None:
    """Write the weights, the configuration and the tokenizer of a model for `mlx_lm.load`.

    Args:
        directory: the directory; it is created if it does not exist.
        model: the model.
        context: the most tokens that it has learnt to read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ps.checkpoint.save(directory / "model.safetensors", model.parameters())
    attention, feed = model.model.layers[0].self_attn, model.model.layers[0].mlp
    inner, width = feed.up_proj.weight.shape
    configuration = {
        "model_type": "llama",
        "vocab_size": BYTES,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(model.model.layers),
        "num_attention_heads": attention.heads,
        "max_position_embeddings": context,
        "rms_norm_eps": EPSILON,
        "rope_theta": BASE,
        "tie_word_embeddings": True,
        "eos_token_id": ord("\n"),
    }
    files = {
        "config": configuration,
        "tokenizer": tokenizer(),
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for name, content in files.items():
        atomic.write_text(directory / f"{name}.json", json.dumps(content, indent=1) + "\n")


def tokenizer() -> dict[str, Any]:
    """Return the description of a tokenizer of bytes for Hugging Face's `tokenizers`."""
    spare = iter(range(BYTES, 2 * BYTES))
    characters = [chr(byte if byte in _PRINTED else next(spare)) for byte in range(BYTES)]
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytewise,
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "vocab": {character: byte for byte, character in enumerate(characters)},
            "merges": [],
        },
    }


def compare(
    session: Session, model: Path, adapters: Path, tokens: mx.array, logits: mx.array
) -> float | None:
    """Load a model with adapters in mlx-lm, if it is installed, and print how to use them there.

    Args:
        session: prints.
        model: the directory that `export` wrote.
        adapters: the directory that `ps.adapters.save` wrote.
        tokens: [batch, seq].
        logits: of the adapted model for these tokens, [batch, seq, vocab].

    Returns:
        The largest difference of mlx-lm's logits, or `None` if mlx-lm is not installed.
    """
    try:
        mlx_lm: Any = importlib.import_module("mlx_lm")
    except ModuleNotFoundError:
        session.say("\nmlx-lm is not installed, so the adapters are not loaded there")
        return None
    with ps.rng.scope(mx.random.key(0)):  # mlx-lm draws weights before it reads those of the file
        loaded = mlx_lm.load(str(model), adapter_path=str(adapters))[0]
    difference: Any = mx.abs(loaded(tokens) - logits).max().item()
    session.say(
        f"\nmlx-lm {mlx_lm.__version__} loads both; its logits differ by at most {difference:.1e}. To try:"
    )
    session.console.print(
        f"  python -m mlx_lm generate --model {shlex.quote(str(model))} "
        f"--adapter-path {shlex.quote(str(adapters))} --ignore-chat-template --prompt 'Swap: cats -> '",
        soft_wrap=True,
    )
    return difference
