"""LoRA and DoRA against formulas by hand, and what they leave alone."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import adapters
from tests._adapters.models import ALL, KEY, TOKENS, Block, same, tied, trained

MODES = [None, "affine", "mxfp4", "nvfp4"]
BOTH = [adapters.lora, adapters.dora]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("add", BOTH)
def test_an_adapted_module_starts_as_its_base_bit_for_bit(add, mode):
    for dtype in (mx.float32, mx.bfloat16):
        base = tied(dtype, mode)
        adapted = add(base, ALL, rank=4, alpha=4, key=KEY)
        assert adapted(TOKENS).dtype == base(TOKENS).dtype
        assert mx.array_equal(adapted(TOKENS), base(TOKENS))
        apply, params, _ = ps.functional(adapted)
        assert mx.array_equal(mx.compile(apply)(params, TOKENS), mx.compile(base)(TOKENS))
        assert not mx.array_equal(trained(adapted)(TOKENS), base(TOKENS))


@pytest.mark.parametrize("add", BOTH)
def test_the_base_is_left_unchanged(add):
    base = tied()
    before = ps.tree.map(mx.array, base.parameters())
    layer = base.layers[0].q_proj
    adapted = trained(add(base, ALL, rank=4, alpha=4, key=KEY))
    assert same(before, base.parameters())
    assert base.layers[0].q_proj is layer
    assert same(base.trainable_parameters(), base.parameters())  # not frozen
    assert type(adapted) is type(base)


@pytest.mark.parametrize("add", BOTH)
@pytest.mark.parametrize("mode", MODES)
def test_only_adapters_are_in_params_and_in_the_optimizer_state(add, mode):
    adapted = add(tied(mode=mode), ALL, rank=4, alpha=4, key=KEY)
    _, params, _ = ps.functional(adapted)
    assert {path.rpartition(".")[2] for path in ps.tree.paths(params)} <= {"lora_a", "lora_b", "m"}
    state = ps.TrainState.create(params, ps.optimizers.adam(1e-3))
    held = sum(leaf.nbytes for leaf in ps.tree.leaves(state.opt_state))
    assert 0 <= held - 8 * ps.tree.size(params) <= 16  # two moments, and counters
    assert adapters.report(adapted).trained == ps.tree.size(params)


def test_activations_in_bfloat16_stay_so():
    for add in BOTH:
        model = trained(add(tied(mx.bfloat16), ALL, rank=4, alpha=4, key=KEY))
        x = mx.ones((2, 32), mx.bfloat16)
        assert model.layers[0](x).dtype == model.embed(mx.array([1])).dtype == mx.bfloat16
        assert model.embed.as_linear(x).dtype == mx.bfloat16
        assert model.embed.lora_a.dtype == mx.float32
        low = add(tied(mx.bfloat16), ALL, rank=4, alpha=4, dtype=mx.bfloat16, key=KEY)
        assert {leaf.dtype for leaf in ps.tree.leaves(low.trainable_parameters())} == {mx.bfloat16}
        assert mx.array_equal(low(TOKENS), tied(mx.bfloat16)(TOKENS))


def by_hand(base, layer, x, dora):
    weight, a, b = (np.array(each, np.float64) for each in (base.weight, layer.lora_a, layer.lora_b))
    weight = weight + layer.scale * (a @ b).T
    if dora:
        weight = np.array(layer.m)[:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)
    return np.array(x) @ weight.T + (np.array(base.bias) if "bias" in base else 0)


@pytest.mark.parametrize("add", BOTH)
@pytest.mark.parametrize("name", ["q_proj", "v_proj"])
def test_the_output_is_that_of_the_formula(add, name):
    base = tied()
    layer = trained(add(base, f"layers.0.{name}", rank=4, alpha=12, key=KEY)).layers[0][name]
    assert layer.scale == 3
    x = mx.random.normal((5, 32), key=mx.random.key(3))
    want = by_hand(base.layers[0][name], layer, x, add is adapters.dora)
    np.testing.assert_allclose(np.array(layer(x)), want, rtol=1e-5, atol=1e-5)


def test_the_lengths_of_dora_have_a_gradient_and_their_denominator_has_none():
    model: Any = trained(adapters.dora(tied(), "layers.0.v_proj", rank=4, alpha=4, key=KEY))
    layer = model.layers[0].v_proj
    x = mx.random.normal((5, 32), key=mx.random.key(3))
    frozen = layer.factors() / layer.m

    def explicit(a, b, m):
        weight = layer.linear.weight + (a @ b).T
        return (((frozen * m)[:, None] * (x @ weight.T).T).T + layer.linear.bias).square().sum()

    apply, params, _ = ps.functional(layer)
    found = mx.grad(lambda p: apply(p, x).square().sum())(params)
    want = mx.grad(explicit, argnums=(0, 1, 2))(layer.lora_a, layer.lora_b, layer.m)
    for name, gradient in zip(("lora_a", "lora_b", "m"), want, strict=True):
        np.testing.assert_allclose(np.array(found[name]), np.array(gradient), rtol=2e-4, atol=1e-3)


def test_scales():
    def scale(**options):
        return adapters.lora(tied(), "embed", rank=16, key=KEY, **options).embed.scale

    assert [scale(alpha=32), scale(scale=20.0)] == [2, 20]
    assert scale(alpha=32, rank_stabilized=True) == 8  # alpha / sqrt(rank)


def test_first_matrices_are_a_function_of_key_and_path():
    base = tied()
    one, two = (adapters.lora(base, ALL, rank=4, alpha=4, key=KEY) for _ in range(2))
    alone = adapters.lora(base, "layers.1.q_proj", rank=4, alpha=4, key=KEY)
    other = adapters.lora(base, ALL, rank=4, alpha=4, key=mx.random.key(8))
    assert same(one.parameters(), two.parameters())
    assert mx.array_equal(one.layers[1].q_proj.lora_a, alone.layers[1].q_proj.lora_a)
    assert not mx.array_equal(one.layers[1].q_proj.lora_a, one.layers[0].q_proj.lora_a)
    assert not mx.array_equal(one.layers[1].q_proj.lora_a, other.layers[1].q_proj.lora_a)
    for layer, inputs in ((one.embed, 48), (one.layers[0].q_proj, 32)):
        largest = mx.abs(layer.lora_a).max().item()
        assert 0.8 * inputs**-0.5 < largest <= inputs**-0.5
        assert not mx.any(layer.lora_b)


@pytest.mark.parametrize("add", BOTH)
def test_dropout_is_keyed(add):
    adapted = trained(add(tied(), ALL, rank=4, alpha=4, dropout=0.5, key=KEY), size=0.5)
    apply, params, _ = ps.functional(adapted)
    one, again, other = (apply(params, TOKENS, rng=mx.random.key(seed)) for seed in (1, 1, 2))
    assert mx.array_equal(one, again)
    assert not mx.array_equal(one, other)
    assert mx.array_equal(apply(params, TOKENS), adapted.eval()(TOKENS))


def test_a_second_call_adapts_other_layers_with_another_rank():
    model = adapters.lora(tied(), "*.q_proj", rank=4, alpha=4, key=KEY)
    model = adapters.dora(model, "*.v_proj", rank=2, alpha=2, key=KEY)
    assert [(each.path, each.kind, each.rank) for each in adapters.report(model).rows] == [
        ("layers.0.q_proj", "lora", 4),
        ("layers.0.v_proj", "dora", 2),
        ("layers.1.q_proj", "lora", 4),
        ("layers.1.v_proj", "dora", 2),
    ]
    assert len(ps.tree.leaves(ps.functional(model)[1])) == 2 * 2 + 2 * 3


def test_a_shared_layer_has_one_adapter_and_tied_weights_stay_tied():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8, bias=False)
            self.second = self.first
            self.third = nn.Linear(8, 8, bias=False)
            self.third.weight = self.first.weight

        def __call__(self, x):
            return self.third(self.second(self.first(x)))

    with ps.rng.scope(KEY):
        base = Shared()
    model = adapters.lora(base, "first", rank=2, alpha=2, key=KEY)
    assert model.second is model.first
    assert model.third.weight is model.first.linear.weight
    assert len(ps.tree.leaves(ps.functional(model)[2])) == 1


def refused(message, patterns="embed", add=adapters.lora, module=None, **options):
    with pytest.raises((ValueError, TypeError), match=f"^{add.__name__}: .*{message}"):
        add(tied() if module is None else module, patterns, **{"rank": 4, "alpha": 4, "key": KEY, **options})


def test_bad_input_is_refused():
    refused(r"'\*.q_prj' matches none .*layers.\d.q_proj", "*.q_prj")
    refused("'x' matches none", ["embed", "x"], add=adapters.dora)
    refused(r"layers.0.norm must be .*RMSNorm .*'\*'", "*")
    refused("at least one pattern", [])
    refused("pattern must be a string", [3])
    refused("rank must be at most 32 for embed, got 33", rank=33)
    refused("rank .*0", rank=0)
    refused("rank must be an integer", rank=2.5)
    refused("alpha .*0", alpha=0)
    refused("one of alpha and scale", scale=1)
    refused("one of alpha and scale", alpha=None)
    refused("rank_stabilized .*scale", scale=1, alpha=None, rank_stabilized=True)
    refused("scale must be finite", alpha=None, scale=float("inf"))
    refused("dropout .*1", dropout=1)
    refused("dtype must be float32", dtype=mx.int32)
    refused("key must be", key=3)
    refused("module must be an mlx.nn.Module", module=3)
    adapted = adapters.lora(tied(), "embed", rank=4, alpha=4, key=KEY)
    refused("embed already has an adapter", module=adapted)
    refused("embed already has an adapter", "embed.*", module=adapted)
    refused("matches none", "*", module=nn.ReLU())
    assert adapters.lora(tied(), "embed", rank=32, alpha=4, key=KEY).embed.rank == 32


def test_layers_in_plain_containers_and_closures_are_replaced_too():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            block = Block(8)
            self.block = block
            self.call = lambda x: block(x)

        def __call__(self, x):
            return self.call(x)

    with ps.rng.scope(KEY):
        base = Odd()
    model = trained(adapters.lora(base, "block.*_proj", rank=2, alpha=2, key=KEY))
    assert not mx.array_equal(model(mx.ones(8)), base(mx.ones(8)))
