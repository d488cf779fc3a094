"""Multi-token prediction: causality of every head, and the loss of the paper."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep.losses import MultiTokenPrediction, cross_entropy, multi_token_loss
from tests.refusals import parts
from tests.trees import same_bits

VOCABULARY, WIDTH, HEADS, LENGTH = 11, 8, 2, 12


class Causal(nn.Module):
    """A model with running sums of embeddings as hidden states, and heads on top."""

    def __init__(self, n_predict):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.mtp = MultiTokenPrediction(WIDTH, HEADS, n_predict)

    def __call__(self, tokens):
        embedded = self.embedding(tokens)
        return self.mtp(embedded.cumsum(axis=1), embedded)


def bridged(n_predict=2):
    with ps.rng.scope(mx.random.key(0)):
        model = Causal(n_predict)
        mx.eval(model.parameters())
    return ps.functional(model)[:2]


def tokens_of(seed, batch=2, length=LENGTH):
    return mx.random.randint(0, VOCABULARY, (batch, length), key=mx.random.key(seed))


def predictions(n_predict, inputs):
    """Return the logits of each depth."""
    apply, params = bridged(n_predict)
    return [state @ params["embedding"]["weight"].T for state in apply(params, inputs)]


@pytest.mark.parametrize("n_predict", [1, 2, 4])
def test_no_head_sees_the_future_to_the_bit_and_each_sees_the_present(n_predict):
    inputs = tokens_of(1)
    before = predictions(n_predict, inputs)
    for place in range(LENGTH):
        changed = mx.where(mx.arange(LENGTH) == place, (inputs + 1) % VOCABULARY, inputs)
        after = predictions(n_predict, changed)
        for depth, (one, other) in enumerate(zip(before, after, strict=True)):
            # Entry i of a depth depends on tokens up to i + depth.
            unaware = max(place - depth, 0)
            assert same_bits(one[:, :unaware], other[:, :unaware]), (place, depth)
            aware = mx.abs(one - other)[:, unaware:].max(axis=-1)
            assert (aware > 0).all().item(), (place, depth)


@pytest.mark.parametrize("n_predict", [1, 2, 5])
def test_each_depth_is_one_shorter_than_the_one_before(n_predict):
    assert [p.shape[1] for p in predictions(n_predict, tokens_of(0))] == [12, 11, 10, 9, 8, 7][
        : n_predict + 1
    ]


def test_the_heads_share_one_embedding_and_one_output():
    _, params = bridged(2)
    matrices = [path for path, leaf in ps.tree.items(params) if VOCABULARY in leaf.shape]
    assert matrices == ["embedding.weight"]


@pytest.mark.parametrize("shared", ["matrix", "function"])
def test_the_loss_is_that_of_the_paper(shared):
    generator = np.random.default_rng(0)
    length, width, vocabulary = 5, 3, 4
    states = [generator.normal(size=(2, length - depth, width)) for depth in range(3)]
    matrix, targets = (
        generator.normal(size=(vocabulary, width)),
        generator.integers(0, vocabulary, (2, length)),
    )
    weights = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]])

    sums, counts = [], []
    for depth, state in enumerate(states):
        logits = state @ matrix.T
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total = 0.0
        for row in range(2):
            for i in range(length - depth):
                total -= weights[row, i + depth] * np.log(p[row, i, targets[row, i + depth]])
        sums.append(total)
        counts.append(weights[:, depth:].sum())
    want = (sums[0] + 0.3 / 2 * (sums[1] + sums[2])) / counts[0]

    matrix = mx.array(matrix.astype(np.float32))
    output = matrix if shared == "matrix" else lambda state: state @ matrix.T
    arrays = [mx.array(state.astype(np.float32)) for state in states]
    loss, metrics = multi_token_loss(arrays, output, mx.array(targets), weights=mx.array(weights))
    assert loss.value.item() == pytest.approx(want, rel=1e-5)
    for name, total, count in zip(("next_token_loss", "mtp_loss_1", "mtp_loss_2"), sums, counts, strict=True):
        assert metrics[name].weight.item() == count
        assert metrics[name].value.item() == pytest.approx(total / count, rel=1e-5)


def loss_of(mtp_weight=0.3, n_predict=2):
    apply, params = bridged(n_predict)

    def loss_fn(params, batch, rng):
        states = apply(params, batch["inputs"], rng=rng)
        return multi_token_loss(
            states, params["embedding"]["weight"], batch["targets"], mtp_weight=mtp_weight, ignore_index=-100
        )

    return loss_fn, params


def batch_of(rows=8):
    tokens = tokens_of(3, rows, LENGTH + 1)
    targets = mx.where(mx.arange(LENGTH) < 4 + mx.arange(rows)[:, None], tokens[:, 1:], -100)
    return {"inputs": tokens[:, :-1], "targets": targets}


def test_without_weight_the_loss_is_that_of_the_next_token_and_the_heads_learn_nothing():
    loss_fn, params = loss_of(mtp_weight=0.0)
    batch = batch_of()
    gradients = mx.grad(lambda p: loss_fn(p, batch, None)[0].value)(params)
    assert ps.tree.norm(gradients["mtp"]).item() == 0
    loss, metrics = loss_fn(params, batch, None)
    assert loss.value.item() == metrics["next_token_loss"].value.item()
    embedded = params["embedding"]["weight"][batch["inputs"]].cumsum(axis=1)
    logits = embedded @ params["embedding"]["weight"].T
    plain = cross_entropy(logits, batch["targets"], ignore_index=-100)
    assert loss.value.item() == pytest.approx(plain.value.item(), rel=1e-5)


def test_every_parameter_gets_a_gradient():
    loss_fn, params = loss_of()
    gradients = mx.grad(lambda p: loss_fn(p, batch_of(), None)[0].value)(params)
    assert [path for path, g in ps.tree.items(gradients) if not mx.abs(g).max().item() > 0] == []


@pytest.mark.parametrize("compiled", [False, True])
def test_microbatches_give_the_step_of_the_whole_batch(compiled):
    loss_fn, params = loss_of()
    transform = ps.optimizers.sgd(0.5)
    state = ps.TrainState.create(params, transform)
    whole, metrics = ps.train_step(loss_fn, transform)(state, batch_of())
    step = ps.train_step(loss_fn, transform, microbatches=4)
    parts, part_metrics = (ps.compiled(step) if compiled else step)(state, batch_of())
    for one, other in zip(ps.tree.leaves(whole.params), ps.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)
    for name in ("loss", "next_token_loss", "mtp_loss_1", "mtp_loss_2"):
        assert part_metrics[name].item() == pytest.approx(metrics[name].item(), rel=1e-5)


def test_all_masked_is_zero():
    loss_fn, params = loss_of()
    batch = {**batch_of(), "targets": mx.full((8, LENGTH), -100)}
    value, gradients = mx.value_and_grad(lambda p: loss_fn(p, batch, None)[0].value)(params)
    assert (value.item(), ps.tree.norm(gradients).item()) == (0, 0)


S = [mx.zeros((1, 4, 8)), mx.zeros((1, 3, 8))]
T = mx.zeros((1, 4), mx.int32)


@pytest.mark.parametrize(
    ("states", "targets", "options", "error", "message"),
    [
        (S[0], T, {}, ValueError, "states ... list of arrays"),
        ([], T, {}, ValueError, "states ... list of arrays"),
        ([S[0], S[0]], T, {}, ValueError, "states[1] ... [1, 3, width], ... targets' (1, 4), got (1, 4, 8)"),
        (S, T[:, :3], {}, ValueError, "states[0] ... [1, 3, width]"),
        (S, T[0], {}, ValueError, "targets ... [batch, length], got (4,)"),
        (S, T.astype(mx.float32), {}, TypeError, "targets ... integers, got mlx.core.float32"),
        (S, T, {"mtp_weight": -0.1}, ValueError, "mtp_weight ... 0, got -0.1"),
        (
            S,
            T,
            {"weights": mx.ones((2, 4))},
            ValueError,
            "weights ... broadcast ... targets' (1, 4), got (2, 4)",
        ),
    ],
)
def test_a_bad_argument_of_the_loss_is_refused(states, targets, options, error, message):
    with pytest.raises(error, match=parts(f"multi_token_loss: {message}")):
        multi_token_loss(states, mx.zeros((5, 8)), targets, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3), "width ... heads=3, got 8"),
        ((8, 8), "width ... heads=8, got 8"),
        ((8, 2, 0), "n_predict ... 1, got 0"),
    ],
)
def test_a_bad_shape_of_the_module_is_refused(arguments, message):
    with pytest.raises(ValueError, match=parts(f"MultiTokenPrediction: {message}")):
        MultiTokenPrediction(*arguments)


def test_sequences_too_short_for_the_heads_are_refused():
    with pytest.raises(ValueError, match="MultiTokenPrediction: length .* n_predict=2, got 2"):
        predictions(2, tokens_of(0, length=2))
