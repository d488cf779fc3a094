"""The entropy of attention against numpy, for every kind of mask."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep._measures import attention
from tests._measures.measuring import model_step, numbers

m = ps.metrics


def entropy(q, k, scale, mask):
    """Return [batch, heads, queries] from [.., heads, .., width], by the definition; mask is additive."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = scale * np.einsum("bhqd,bhkd->bhqk", q, k) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return -np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).sum(-1)


def test_entropies_are_those_of_the_definition_for_every_mask():
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, 4, 5, 8)), random.normal(size=(2, 2, 7, 8))
    causal = np.where(np.arange(5)[:, None] + 2 >= np.arange(7), 0.0, -np.inf)
    allowed = random.random((2, 1, 5, 7)) < 0.7
    allowed[..., 0] = True
    added = random.normal(size=(5, 7))
    cases = [
        (None, 0.0),
        ("causal", causal),
        (mx.array(allowed), np.where(allowed, 0.0, -np.inf)),
        (mx.array(added.astype(np.float32)), added),
    ]
    for given, mask in cases:
        found = m.head_entropies(mx.array(q, mx.float32), mx.array(k, mx.float32), scale=0.5, mask=given)
        np.testing.assert_allclose(np.asarray(found), entropy(q, k, 0.5, mask), rtol=1e-4, atol=1e-5)


def test_uniform_attention_has_the_logarithm_and_a_single_key_zero():
    flat = mx.zeros((1, 1, 3, 4))
    assert m.head_entropies(flat, flat, scale=1.0).tolist() == pytest.approx(np.full((1, 1, 3), np.log(3)))
    blocked = mx.array([[True, False, False], [False, False, False], [True, True, False]])
    found = np.asarray(m.head_entropies(flat, flat, scale=1.0, mask=blocked))[0, 0]
    assert found.tolist() == pytest.approx([0.0, np.nan, np.log(2)], nan_ok=True)


def test_a_step_measures_each_head_of_the_attention_that_it_runs():
    step, state, batch, _ = model_step([m.attention_entropy("*.attention", examples=4)], microbatches=2)
    found = numbers(step(state, batch)[1], "attention_entropy")
    layer = state.params["layers"][0]["attention"]
    q, k = (
        np.asarray(batch["x"] @ layer[f"{name}_proj"]["weight"].T).reshape(4, 5, 2, 4).transpose(0, 2, 1, 3)
        for name in ("query", "key")
    )
    want = entropy(q, k, 0.5, np.where(np.tri(5, dtype=bool), 0.0, -np.inf)).mean(axis=(0, 2))
    assert [found["layers.0.attention/0"], found["layers.0.attention/1"]] == pytest.approx(want, rel=1e-4)
    assert found["layers.0.attention/mean"] == pytest.approx(want.mean(), rel=1e-4)
    assert list(found)[:4] == [
        *(f"layers.0.attention/{x}" for x in ("mean", 0, 1)),
        "layers.1.attention/mean",
    ]


def test_the_innermost_pattern_counts_and_few_examples_are_enough():
    first, state, batch, _ = model_step([m.attention_entropy(["layers.0", "*.attention"], examples=1)])
    with pytest.raises(ValueError, match="pattern 'layers.0' matches layers.0, which does not call"):
        first(state, batch)
    one, _, _, _ = model_step([m.attention_entropy("layers.*", examples=1)])
    cut = {name: array[:1] for name, array in batch.items()}
    whole, part = (numbers(one(state, given)[1], "attention_entropy") for given in (batch, cut))
    assert list(whole) == list(part)
    assert whole == pytest.approx(part, rel=1e-5)


def test_few_queries_in_equal_distances_are_measured_with_their_part_of_the_mask():
    every, state, batch, _ = model_step([m.attention_entropy("*.attention", examples=4, queries=2)])
    found = numbers(every(state, batch)[1], "attention_entropy")
    layer = state.params["layers"][0]["attention"]
    q, k = (
        np.asarray(batch["x"] @ layer[f"{name}_proj"]["weight"].T).reshape(4, 5, 2, 4).transpose(0, 2, 1, 3)
        for name in ("query", "key")
    )
    whole = entropy(q, k, 0.5, np.where(np.tri(5, dtype=bool), 0.0, -np.inf))
    assert found["layers.0.attention/1"] == pytest.approx(whole[:, 1, ::3].mean(), rel=1e-4)
    with pytest.raises(ValueError, match="queries must be at least 1"):
        m.attention_entropy("*", queries=0)


def test_recording_keeps_a_replacement_of_attention_that_was_there_before(monkeypatch):
    calls, original = [], mx.fast.scaled_dot_product_attention

    def counting(*args, **options):
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", counting)
    step, state, batch, _ = model_step([m.attention_entropy("layers.0.attention")])
    step(state, batch)
    assert len(calls) == 2  # both layers
    assert mx.fast.scaled_dot_product_attention is counting


def test_a_sink_counts_as_one_more_key():
    """The weights are those that MLX's own attention gives to values of one."""
    random = np.random.default_rng(0)
    q, k, sinks = random.normal(size=(2, 4, 5, 8)), random.normal(size=(2, 2, 7, 8)), [2.0, 0.0, -1.0, 1.0]
    q, k, sinks = (mx.array(np.asarray(x, np.float32)) for x in (q, k, sinks))
    values = mx.broadcast_to(mx.eye(7), (2, 2, 7, 7))
    weights = np.asarray(mx.fast.scaled_dot_product_attention(q, k, values, scale=0.5, sinks=sinks))
    weights = np.concatenate([weights, 1 - weights.sum(-1, keepdims=True)], axis=-1)
    found = m.head_entropies(q, k, scale=0.5, sinks=sinks)
    np.testing.assert_allclose(np.asarray(found), -(weights * np.log(weights)).sum(-1), atol=1e-5)
    hidden = m.head_entropies(q, k, scale=0.5, sinks=sinks, mask=mx.zeros((5, 7), mx.bool_))
    assert mx.isnan(hidden).all().item()  # a query without keys, also if it attends to the sink


class Sinking(nn.Module):
    """One attention with sinks, whose queries and keys are its input."""

    def __init__(self):
        super().__init__()
        self.sinks = mx.array([3.0, -3.0])

    def __call__(self, x):
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask="causal", sinks=self.sinks)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Sinking()

    def __call__(self, x):
        return self.inner(x)


def of_sinking(x, *measure):
    """Return the metrics of a step of `Wrapped`."""
    apply, params, _ = ps.functional(Wrapped())
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(
        lambda params, batch, rng: apply(params, batch).mean(), transform, measure=list(measure)
    )
    return step(ps.TrainState.create(params, transform), x)[1]


def test_a_step_measures_attention_with_its_sinks_and_each_measurement_in_its_own_layer():
    x = mx.random.normal((1, 2, 5, 4), key=mx.random.key(0))
    outer, inner = m.attention_entropy("inner", name="a"), m.attention_entropy("", name="b")
    metrics = of_sinking(x, outer, inner)
    sinks = mx.array([3.0, -3.0])
    want = m.head_entropies(x, x, scale=1.0, mask="causal", sinks=sinks).mean(axis=(0, 2)).tolist()
    assert [metrics[f"a/inner/{head}"].item() for head in (0, 1)] == pytest.approx(want, rel=1e-5)
    assert [metrics[f"b/{head}"].item() for head in (0, 1)] == pytest.approx(want, rel=1e-5)


def test_broken_scores_are_nan_and_not_taken_for_masked_ones():
    x = mx.random.normal((1, 2, 5, 4), key=mx.random.key(0))
    broken = mx.where(mx.arange(5)[:, None] == 4, mx.nan, x)  # only the last query sees that key
    assert mx.isnan(of_sinking(broken, m.attention_entropy("inner"))["attention_entropy/inner/0"]).item()


class Layer(nn.Module):
    """Attention of its input to itself, scaled, with a mask."""

    def __init__(self, scale, heads=2):
        super().__init__()
        self.scale, self.weight = scale, mx.ones(heads)

    def __call__(self, x, mask):
        x = self.weight[:, None, None] * x
        return mx.fast.scaled_dot_product_attention(x, x, x, scale=self.scale, mask=mask)


class Several(nn.Module):
    """Layers of one mask, one of another, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.layers = [Layer(0.5), Layer(0.25), Layer(1.0), Layer(2.0)]

    def __call__(self, x):
        mask, other = mx.arange(5)[:, None] >= mx.arange(5), 0.1 * mx.arange(5.0)[None]
        for layer, each in zip(self.layers, (mask, mask, other, None), strict=True):
            x = layer(x, each)
        return self.layers[0](x, "causal")


def test_layers_of_one_mask_are_one_product_and_every_layer_is_its_own(monkeypatch):
    """Against each layer by hand; 64 queries in distances of 1."""
    made, plain = [], attention._entropies
    monkeypatch.setattr(attention, "_entropies", lambda *given: made.append(given) or plain(*given))
    apply, params, _ = ps.functional(Several())
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(
        lambda params, batch, rng: apply(params, batch).mean(),
        transform,
        measure=[m.attention_entropy("layers.*", examples=2)],
    )
    x = mx.random.normal((2, 2, 5, 4), key=mx.random.key(0))
    found = numbers(step(ps.TrainState.create(params, transform), x)[1], "attention_entropy")
    # Layers 0 and 1 together, 2 and 3 alone, and 0 again.
    assert [given[0].shape[0] for given in made] == [2, 1, 1, 1]
    inputs, mask, h = [], mx.arange(5)[:, None] >= mx.arange(5), x
    other = 0.1 * mx.arange(5.0)[None]
    for scale, each in ((0.5, mask), (0.25, mask), (1.0, other), (2.0, None), (0.5, mask)):
        inputs.append(m.head_entropies(h, h, scale=scale, mask=each))
        h = mx.fast.scaled_dot_product_attention(h, h, h, scale=scale, mask=each)
    first = mx.concatenate([inputs[0], inputs[4]]).mean(axis=(0, 2)).tolist()
    assert [found["layers.0/0"], found["layers.0/1"]] == pytest.approx(first, rel=1e-5)
    for index in (1, 2, 3):
        want = inputs[index].mean(axis=(0, 2)).tolist()
        assert [found[f"layers.{index}/{head}"] for head in (0, 1)] == pytest.approx(want, rel=1e-5)
    assert list(found) == [f"layers.{i}/{key}" for i in range(4) for key in ("mean", 0, 1)]
