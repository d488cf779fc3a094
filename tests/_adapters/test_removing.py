"""Merged modules equal adapted ones; removing adapters gives back the base."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import adapters
from tests._adapters.models import ALL, KEY, TOKENS, same, tied, trained

BOTH = [adapters.lora, adapters.dora]


@pytest.mark.parametrize("add", BOTH)
def test_a_merged_module_equals_the_adapted_one(add):
    base = tied()
    adapted = trained(add(base, ALL, rank=4, alpha=8, dropout=0.1, key=KEY)).eval()
    before = ps.tree.map(mx.array, adapted.parameters())
    merged = adapters.merge(adapted)
    np.testing.assert_allclose(np.array(merged(TOKENS)), np.array(adapted(TOKENS)), rtol=1e-5, atol=1e-5)
    assert not np.allclose(np.array(merged(TOKENS)), np.array(base(TOKENS)), atol=1e-2)
    assert same(before, adapted.parameters())
    assert ps.tree.paths(merged.parameters()) == ps.tree.paths(base.parameters())
    assert same(merged.trainable_parameters(), merged.parameters())


@pytest.mark.parametrize("add", BOTH)
@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4"])
def test_a_quantized_base_is_quantized_again_in_the_same_way(add, mode):
    base = tied(mode=mode)
    adapted = trained(add(base, ALL, rank=4, alpha=4, key=KEY))
    merged = adapters.merge(adapted)
    for name in ("q_proj", "v_proj"):
        new, old, layer = (each.layers[0][name] for each in (merged, base, adapted))
        assert type(new) is type(old)
        assert (new.group_size, new.bits, new.mode) == (
            old.group_size,
            old.bits,
            old.mode,
        )
        want = mx.quantize(layer.merged_weight(), old.group_size, old.bits, mode=mode)
        for key, array in zip(("weight", "scales", "biases"), want, strict=False):
            assert mx.array_equal(new[key], array)
            assert new[key].dtype == old[key].dtype
    assert not mx.array_equal(merged(TOKENS), base(TOKENS))
    assert "layers.0.q_proj.weight" not in ps.tree.paths(merged.trainable_parameters())


@pytest.mark.parametrize("mode", [None, "affine", "nvfp4"])
def test_removing_gives_back_the_base_bit_for_bit(mode):
    base = tied(mode=mode)
    found = adapters.remove(trained(adapters.dora(base, ALL, rank=4, alpha=4, key=KEY)))
    assert same(found.parameters(), base.parameters())
    assert mx.array_equal(found(TOKENS), base(TOKENS))
    if mode is None:
        assert same(ps.functional(found)[1], ps.functional(base)[1])


def test_a_merged_dtype_is_that_of_the_base():
    merged = adapters.merge(adapters.lora(tied(mx.bfloat16), ALL, rank=4, alpha=4, key=KEY))
    assert same(merged.parameters(), tied(mx.bfloat16).parameters())


def test_a_module_without_adapters_is_refused():
    for function in (adapters.merge, adapters.remove):
        with pytest.raises(ValueError, match=f"^{function.__name__}: module must have adapters, got none"):
            function(tied())
        with pytest.raises(TypeError, match="must be an mlx.nn.Module, got dict"):
            function({})


def test_the_report_counts():
    base = tied(mode="affine")
    report = adapters.report(trained(adapters.lora(base, ["embed", "*.q_proj"], rank=4, alpha=4, key=KEY)))
    assert [each.parameters for each in report.rows] == [4 * (48 + 32), 4 * 64, 4 * 64]
    assert report.trained == 4 * (48 + 32) + 2 * 4 * 64
    assert report.frozen == 48 * 32 + 2 * (2 * 32 * 32 + 32 + 32)  # as before quantization
    assert report.frozen == adapters.report(tied().freeze()).frozen
    assert report.rows[0] == ("embed", "lora", 4, 320, 1.0, "quantized embedding")
    assert str(report).splitlines()[-1] == "832 trained, 5,760 frozen"
