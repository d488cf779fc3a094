"""Adapters on disk: back bit for bit, in mlx-lm's layout, and refused where they do not fit."""

import json
import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import adapters
from purestep.checkpoint import CorruptError
from tests._adapters.models import ALL, KEY, TOKENS, same, tied, trained

BOTH = [adapters.lora, adapters.dora]
FOUR: Any = {"rank": 4, "alpha": 4, "key": KEY}


@pytest.mark.parametrize("add", BOTH)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("mode", [None, "nvfp4"])
def test_saved_adapters_come_back_bit_for_bit(add, dtype, mode, tmp_path):
    base = tied(mode=mode)
    adapted = trained(add(base, ALL, rank=4, alpha=10, dropout=0.1, dtype=dtype, key=KEY)).eval()
    adapters.save(tmp_path / "new" / "a", adapted, mlx_lm=mode is None or add is adapters.lora)
    other = trained(add(base, ALL, rank=4, alpha=10, dropout=0.1, dtype=dtype, key=KEY), seed=9)
    for module in (base, other):  # with and without adapters
        back = adapters.load(tmp_path / "new" / "a", module).eval()
        assert same(back.parameters(), adapted.parameters())
        assert same(back.trainable_parameters(), adapted.trainable_parameters())
        assert mx.array_equal(back(TOKENS), adapted(TOKENS))
        assert adapters.report(back) == adapters.report(adapted)


def test_params_of_a_state_are_saved_in_place_of_the_modules(tmp_path):
    adapted = adapters.lora(tied(), ALL, **FOUR)
    params = ps.tree.map(lambda p: p + 1, ps.functional(adapted)[1])
    adapters.save(tmp_path, adapted, params)
    assert same(ps.functional(adapters.load(tmp_path, tied()))[1], params)
    assert not mx.any(adapted.embed.lora_b)  # the module is left unchanged
    with pytest.raises(ValueError, match="adapters.save: params does not fit the module: it lacks embed"):
        adapters.save(tmp_path, adapted, {})


@pytest.fixture
def saved(tmp_path):
    adapters.save(tmp_path, trained(adapters.lora(tied(), ALL, **FOUR)))
    return tmp_path


def test_the_layout_is_that_of_mlx_lm(saved):
    arrays: Any = mx.load(str(saved / "adapters.safetensors"))
    assert arrays["layers.1.q_proj.lora_a"].shape == (32, 4)
    assert len(arrays) == 10
    held = json.loads((saved / "adapter_config.json").read_text())
    assert held["fine_tune_type"] == "lora"
    assert held["lora_parameters"]["rank"] == 4
    assert {"scale", "dropout", "keys"} < held["lora_parameters"].keys()


def test_names_are_those_within_the_last_blocks_or_else_from_the_root(tmp_path):
    def written(patterns):
        adapters.save(tmp_path, adapters.lora(tied(), patterns, **FOUR))
        held = json.loads((tmp_path / "adapter_config.json").read_text())
        return held["num_layers"], held["lora_parameters"]["keys"]

    assert written("layers.*_proj") == (2, ["q_proj", "v_proj"])
    assert written("layers.1.*_proj") == (1, ["q_proj", "v_proj"])
    assert written("layers.0.q_proj") == (2, ["layers.0.q_proj"])
    assert written(["layers.1.q_proj", "embed"]) == (2, ["embed", "layers.1.q_proj"])


def test_adapters_that_mlx_lm_cannot_describe_are_saved_for_purestep_alone(saved):
    model = adapters.lora(tied(), "embed", **FOUR)
    mixed = {
        "embed has rank 4, .* rank 2": adapters.lora(model, "*.q_proj", rank=2, alpha=2, key=KEY),
        "embed has scale 1.0, .* 2.0": adapters.lora(model, "*.q_proj", rank=4, scale=2, key=KEY),
        "embed has dropout 0.0, .* 0.5": adapters.lora(model, "*.q_proj", **FOUR, dropout=0.5),
        "embed has method lora, .* dora": adapters.dora(model, "*.q_proj", **FOUR),
        "a quantized embedding": adapters.dora(tied(mode="affine"), "embed", **FOUR),
    }
    for message, module in mixed.items():
        with pytest.raises(ValueError, match=f"mlx_lm must be False for these adapters: .*{message}"):
            adapters.save(saved, module)
        adapters.save(saved, module, mlx_lm=False)
        assert os.listdir(saved) == ["adapters.safetensors"]
        base = adapters.remove(module)
        assert same(adapters.load(saved, base).parameters(), module.parameters())


def test_other_trained_arrays_are_refused(tmp_path):
    model = adapters.lora(tied(), "embed", **FOUR)
    model.layers[0].norm.unfreeze()
    with pytest.raises(ValueError, match=r"layers.0.norm.weight is trained and is not of an adapter"):
        adapters.save(tmp_path, model)
    with pytest.raises(ValueError, match="adapters.save: module must have adapters"):
        adapters.save(tmp_path, tied())


def refused(message, directory, module):
    with pytest.raises(ValueError, match=message):
        adapters.load(directory, module)


def test_adapters_of_another_model_or_rank_are_refused(saved):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 4)

    with ps.rng.scope(KEY):
        wide = Wide()
    refused("(?s)does not fit the module.*layers.1.v_proj is not in the module", saved, wide)
    refused(r"embed.lora_a has shape \(48, 4\) in the file, \(4, 4\) in the module", saved, wide)
    ranked = adapters.lora(tied(), ALL, rank=3, alpha=3, key=KEY)
    refused(r"q_proj.lora_b has shape \(4, 32\) in the file, \(3, 32\) in the module", saved, ranked)
    refused(
        "embed has no adapter in the module",
        saved,
        adapters.lora(tied(), "layers.*_proj", **FOUR),
    )
    refused(
        "embed is lora with scale 1.0 in the file, dora",
        saved,
        adapters.dora(tied(), ALL, **FOUR),
    )
    adapters.save(saved, adapters.lora(tied(), "embed", **FOUR))
    refused(
        "layers.0.q_proj has an adapter, and none in",
        saved,
        adapters.lora(tied(), ALL, **FOUR),
    )


def rewritten(directory, change):
    file = str(directory / "adapters.safetensors")
    loaded: Any = mx.load(file, return_metadata=True)
    arrays, metadata = loaded
    mx.eval(arrays)
    change(arrays, metadata)
    mx.save_safetensors(file, arrays, metadata)


def test_missing_and_extra_arrays_are_refused(saved):
    rewritten(saved, lambda arrays, _: arrays.pop("embed.lora_a"))
    refused("embed.lora_a is not in the file", saved, tied())
    rewritten(
        saved, lambda arrays, _: arrays.update({"embed.m": mx.ones(48), "embed.lora_a": mx.ones((48, 4))})
    )
    refused("embed.m is in the file, and its method is lora", saved, tied())
    rewritten(saved, lambda arrays, _: arrays.update({"embed.lora_a": mx.ones(48)}))
    refused(r"embed.lora_a has shape \(48,\)", saved, tied())
    rewritten(saved, lambda arrays, _: arrays.update({"norm.weight": mx.ones(4)}))
    refused("holds norm.weight, which is not an array of an adapter", saved, tied())


def test_damaged_files_are_refused(saved):
    configuration, file = saved / "adapter_config.json", saved / "adapters.safetensors"
    text = configuration.read_text()
    for broken in ("{", "[]", '"a"', '{"lora_parameters": 3}'):
        configuration.write_text(broken)
        with pytest.raises(CorruptError, match="is no configuration of adapters"):
            adapters.load(saved, tied())
    configuration.write_text(text.replace('"scale": 1.0', '"scale": 2.0'))
    refused("must agree with", saved, tied())
    configuration.write_text(text.replace('"rank": 4', '"rank": 8'))
    refused(r"embed.lora_a has shape \(48, 4\) .*\(48, 8\) by the rank", saved, tied())
    configuration.write_text(json.dumps({"fine_tune_type": "full"}))
    refused("fine_tune_type .*'full'", saved, tied())
    configuration.unlink()
    adapters.load(saved, tied())  # the file describes itself
    rewritten(saved, lambda _, metadata: metadata.update({"purestep.adapters": '{"embed": 3}'}))
    with pytest.raises(CorruptError, match="its metadata describe no adapters"):
        adapters.load(saved, tied())
    rewritten(saved, lambda _, metadata: metadata.clear())
    with pytest.raises(FileNotFoundError, match="adapter_config.json, which has the scale"):
        adapters.load(saved, tied())
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptError, match="is cut"):
        adapters.load(saved, tied())
    file.unlink()
    with pytest.raises(FileNotFoundError, match="adapters.load: no file at"):
        adapters.load(saved, tied())


def test_a_failed_write_leaves_the_old_adapters(saved, monkeypatch):
    before = adapters.load(saved, tied()).parameters()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("purestep._checkpoint.disk.tensors.write", fail)
    with pytest.raises(OSError, match="No space"):
        adapters.save(saved, trained(adapters.lora(tied(), ALL, **FOUR), seed=5))
    assert same(adapters.load(saved, tied()).parameters(), before)
    assert sorted(os.listdir(saved)) == ["adapter_config.json", "adapters.safetensors"]


def test_a_directory_that_mlx_lm_wrote_is_read(saved):
    rewritten(saved, lambda _, metadata: metadata.clear())
    configuration = saved / "adapter_config.json"
    held = json.loads(configuration.read_text())
    held["lora_parameters"].update(scale=20.0, dropout=0.25)
    configuration.write_text(json.dumps({**held, "model": "a", "seed": 0}))
    back = adapters.load(saved, tied())
    assert (back.embed.scale, back.embed.rate) == (20.0, 0.25)
    assert not np.isnan(np.array(back.eval()(TOKENS))).any()
