"""config.json and the files beside the weights."""

import dataclasses
import json

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep.checkpoint import CorruptError, save_weights

PARAMS = {"w": mx.ones(2)}


@dataclasses.dataclass
class Inner:
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass
class Args:
    model_type: str = "tiny"
    limit: float = float("inf")
    inner: Inner = dataclasses.field(default_factory=Inner)


def written(path, *arguments, **options):
    save_weights(path, *arguments, **options)
    return json.loads((path / "config.json").read_text())


def test_a_mapping_and_a_dataclass_are_written(tmp_path):
    config = {"model_type": "tiny", "rope": {"theta": 1e4}, "eos": [1, 2], "name": "é"}
    assert written(tmp_path / "mapping", PARAMS, config=config) == config
    assert written(tmp_path / "args", PARAMS, config=Args()) == {
        "model_type": "tiny",
        "limit": {"__float__": "Infinity"},  # as transformers writes it, and mlx-lm reads it
        "inner": {"sizes": [1, 2]},
    }


def quantized(*settings):
    """Return layers of these settings, by name; `None` is a layer that is not quantized."""
    wanted = {f"layers.{number}": each for number, each in enumerate(settings) if each}
    with ps.rng.scope(mx.random.key(0)):
        module = nn.Sequential(*(nn.Linear(64, 64) for _ in settings))
        nn.quantize(module, class_predicate=lambda path, part: wanted.get(path, False))
    return module


AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
EIGHT = {"group_size": 32, "bits": 8, "mode": "affine"}
NVFP4 = {"group_size": 16, "bits": 4, "mode": "nvfp4"}


def test_quantized_layers_describe_themselves_whatever_the_configuration_said(tmp_path):
    stale = {"quantization": {"group_size": 128, "bits": 2}, "quantization_config": {"quant_method": "fp8"}}
    for number, (settings, entry) in enumerate(
        [
            ((AFFINE, AFFINE, None), AFFINE),
            ((EIGHT, AFFINE, AFFINE), {**AFFINE, "layers.0": EIGHT}),
            ((None, NVFP4, AFFINE, NVFP4), {**NVFP4, "layers.2": AFFINE}),
        ]
    ):
        config = {"a": 1, **stale}
        found = written(tmp_path / str(number), quantized(*settings), config=config)
        assert found == {"a": 1, "quantization": entry, "quantization_config": entry}
        assert config == {"a": 1, **stale}
    assert written(tmp_path / "plain", quantized(None), config={"a": 1, **stale}) == {"a": 1}
    packed = quantized(None)
    packed.layers[0].weight = mx.zeros((2, 8), mx.uint8)  # of a scheme that is not MLX's
    assert written(tmp_path / "packed", packed, config=stale) == stale
    assert written(tmp_path / "params", PARAMS, config=stale) == stale


def test_the_files_of_a_base_are_copied_but_not_those_of_its_weights(tmp_path):
    base, blobs = tmp_path / "base", tmp_path / "blobs"
    base.mkdir()
    blobs.mkdir()
    (blobs / "0a1b").write_text("{}")
    (base / "tokenizer.json").symlink_to(blobs / "0a1b")  # as in the cache of Hugging Face
    kept = ["chat_template.jinja", "generation_config.json", "merges.txt", "modeling.py", "tokenizer.model"]
    dropped = [
        ".hidden.json",
        "adapter_config.json",
        "hf_quant_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "README.md",
    ]
    for name in [*kept, *dropped]:
        (base / name).write_bytes(name.encode())
    (base / "config.json").write_text('{"model_type": "tiny", "quantization": {"bits": 3}}')
    (base / "deep.json").mkdir()
    found = written(tmp_path / "out", quantized(AFFINE), base=base)
    assert found == {"model_type": "tiny", "quantization": AFFINE, "quantization_config": AFFINE}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *kept,
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    }
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert all((tmp_path / "out" / name).read_bytes() == name.encode() for name in kept)
    assert written(tmp_path / "own", PARAMS, base=base, config={"b": 2}) == {"b": 2}


def test_configurations_that_cannot_be_written_are_refused(tmp_path):
    cycle = {}
    cycle["a"] = cycle
    for kind, message, config in (
        (TypeError, "config must be a mapping or a dataclass, .*got str", "config.json"),
        (TypeError, "config must be a mapping or a dataclass, .*got type", Args),
        (TypeError, "config must have strings for keys, got 3", {3: 1}),
        (ValueError, "config must have JSON values, .*array.* in 'w'", {"w": mx.ones(2)}),
        (ValueError, "config must have JSON values, .* in 's'", {"s": {1, 2}}),
        (ValueError, "config must have JSON values, .* in 'a'", cycle),
    ):
        with pytest.raises(kind, match=rf"^checkpoint\.save_weights: {message}"):
            save_weights(tmp_path / "out", PARAMS, config=config)
    base = tmp_path / "base"
    with pytest.raises(NotADirectoryError, match=r"^checkpoint\.save_weights: base must be a directory"):
        save_weights(tmp_path / "out", PARAMS, base=base)
    base.mkdir()
    with pytest.raises(FileNotFoundError, match=r"^checkpoint\.save_weights: base must have config\.json"):
        save_weights(tmp_path / "out", PARAMS, base=base)
    for text in ("[1]", "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin1")):
        (base / "config.json").write_text(text)
        with pytest.raises(CorruptError, match=r"^checkpoint\.save_weights: .*config\.json is damaged"):
            save_weights(tmp_path / "out", PARAMS, base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
