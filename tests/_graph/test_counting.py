"""FLOP of five models against the rule of torch's FlopCounterMode, worked by hand.

torch counts 2 m n k for a product of matrices; for a convolution 2 * batch * outputs * kernel * channels in *
channels out; for a transposed one inputs in place of outputs; and each of the two gradients as much as the
forward pass. The batch needs no gradient, so the first layer has one product less.
torch 2.13's own counter gives the figures of `TORCH` for the same models.
"""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep._graph.counting import flops_of, step_flops
from purestep._graph.nodes import Operation, Value

TORCH = {
    "perceptron": 236_800,
    "convolutions": 635_904,
    "autoencoder": 211_680,
    "transformer": 17_694_720,
    "lstm": 70_752,
}
TRANSFORM = ps.optimizers.adamw(1e-3)


@pytest.fixture(autouse=True)
def weights():
    """Draw the first weights of modules from a key."""
    with ps.rng.scope(mx.random.key(0)):
        yield


def counted(model, *shapes, dtype=mx.float32, wrap=lambda step: step, **options):
    """Return the FLOP of a step of a model whose loss is the mean of the squares of its output."""
    apply, params, model_state = ps.functional(model)

    def loss_fn(params, batch, rng):
        return ps.Mean.of(mx.square(apply(params, *batch, rng=rng)))

    state = ps.TrainState.create(params, TRANSFORM, model_state=model_state)
    batch = tuple(mx.zeros(shape, dtype) for shape in shapes)
    return ps.metrics.step_flops(wrap(ps.train_step(loss_fn, TRANSFORM, **options)), state, batch)


def dense(tokens, before, after, passes=3):
    return passes * 2 * tokens * before * after


def test_multilayer_perceptron():
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 10))
    assert counted(model, (16, 20)) == (dense(16, 20, 50, passes=2) + dense(16, 50, 30) + dense(16, 30, 10))


def test_convolutions():
    """Strides, padding, and one that mixes channels only."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )
    first = 2 * 2 * (8 * 8) * (3 * 3) * 3 * 8
    second = 2 * 2 * (6 * 6) * (3 * 3) * 8 * 16
    third = 2 * 2 * (6 * 6) * 16 * 4
    assert counted(model, (2, 16, 16, 3)) == TORCH["convolutions"] == 2 * first + 3 * second + 3 * third


def test_strided_convolution_behind_another_layer():
    """Its gradient by the input is a transposed convolution, whose zeros do not count."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 4, stride=4))
    first = 2 * 2 * (16 * 16) * 3 * 8
    second = 2 * 2 * (4 * 4) * (4 * 4) * 8 * 16
    assert counted(model, (2, 16, 16, 3)) == 2 * first + 3 * second


def test_autoencoder_with_transposed_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 3, 3, stride=2))
    down = 2 * 2 * (7 * 7) * (3 * 3) * 3 * 8
    up = 2 * 2 * (7 * 7) * (3 * 3) * 8 * 3
    assert counted(model, (2, 15, 15, 3)) == TORCH["autoencoder"] == 2 * down + 3 * up


class Decoder(nn.Module):
    """A causal transformer with tied embeddings, attention by MLX's own function."""

    def __init__(self, vocabulary, width, heads, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.attention = [nn.MultiHeadAttention(width, heads) for _ in range(layers)]
        self.up = [nn.Linear(width, 4 * width) for _ in range(layers)]
        self.down = [nn.Linear(4 * width, width) for _ in range(layers)]

    def __call__(self, tokens):
        x = self.embedding(tokens)
        mask = nn.MultiHeadAttention.create_additive_causal_mask(tokens.shape[1])
        for attention, up, down in zip(self.attention, self.up, self.down, strict=True):
            x = x + attention(x, x, x, mask)
            x = x + down(nn.gelu(up(x)))
        return self.embedding.as_linear(x)


@pytest.mark.parametrize("wrapped", ["plain", "compiled", "microbatches"])
def test_transformer(wrapped):
    batch, length, vocabulary, width, layers = 4, 24, 96, 32, 2
    tokens = batch * length
    layer = dense(tokens, width, width) * 4 + dense(tokens, width, 4 * width) * 2
    attention = 3 * 2 * batch * length * length * width * 2  # two products, and two for each backward
    exact = layers * (layer + attention) + dense(tokens, width, vocabulary)
    assert exact == TORCH["transformer"]
    model = Decoder(vocabulary, width, 4, layers)
    options = {"microbatches": 2} if wrapped == "microbatches" else {}
    wrap = ps.compiled if wrapped == "compiled" else lambda step: step
    assert counted(model, (batch, length), dtype=mx.int32, wrap=wrap, **options) == exact
    # The formula of PaLM counts the same.
    parameters = layers * 12 * width * width + vocabulary * width
    assert exact == tokens * ps.metrics.transformer_flops(
        parameters, layers=layers, width=width, context=length
    )


def test_recurrent_network():
    """Gates of all steps from the input in one product, and one product for each step."""
    batch, length, before, hidden = 3, 7, 5, 11
    model = nn.LSTM(before, hidden)
    apply, params, _ = ps.functional(model)

    def loss_fn(params, batch, rng):
        return ps.Mean.of(mx.square(apply(params, batch)[0]))

    state = ps.TrainState.create(params, TRANSFORM)
    found = ps.metrics.step_flops(ps.train_step(loss_fn, TRANSFORM), state, mx.zeros((batch, length, before)))
    inputs = dense(batch * length, before, 4 * hidden, passes=2)
    # The first step has no hidden state yet.
    steps = dense(batch * (length - 1), hidden, 4 * hidden)
    assert found == TORCH["lstm"] == inputs + steps


def test_groups_of_channels():
    """Only channels of one group are multiplied; torch's gradient of the weights ignores the groups."""
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 3, groups=4))
    first = 2 * 2 * (12 * 12) * 4 * 8
    second = 2 * 2 * (10 * 10) * (3 * 3) * 2 * 16
    assert counted(model, (2, 12, 12, 4)) == 2 * first + 3 * second


def test_recomputed_activations_count():
    layer = nn.Linear(8, 8)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer)
    apply, params, _ = ps.functional(plain)

    def forward(params, x):
        return apply(params, x)

    def flops(forward):
        def loss_fn(params, batch, rng):
            return ps.Mean.of(mx.square(forward(params, batch)))

        state = ps.TrainState.create(params, TRANSFORM)
        return ps.metrics.step_flops(ps.train_step(loss_fn, TRANSFORM), state, mx.zeros((4, 8)))

    extra = flops(ps.layers.recompute(forward)) - flops(forward)
    assert extra == dense(4, 8, 8, passes=2)


def operation(name, inputs, output, arguments=()):
    values = [Value(shape, mx.float32) for shape in inputs]
    return Operation(name, values, [Value(output, mx.float32)], list(arguments))


def test_fused_attention_counts_as_its_products():
    """2 batch heads queries keys (size + size of values); the gradient also computes the scores again."""
    shapes = [(2, 4, 10, 8), (2, 2, 12, 8), (2, 2, 12, 6)]
    square = 2 * 2 * 4 * 10 * 12
    assert flops_of(operation("ScaledDotProductAttention", shapes, (2, 4, 10, 6))) == square * (8 + 6)
    assert flops_of(operation("ScaledDotProductAttentionVJP", shapes, (2, 4, 10, 8))) == square * (
        3 * 8 + 2 * 6
    )


def test_experts_and_quantized_weights_count_as_products():
    assert flops_of(operation("GatherMM", [(6, 1, 4), (3, 4, 5), (6,), (6,)], (6, 1, 5))) == 2 * 6 * 4 * 5
    quantized = operation("QuantizedMatmul", [(6, 64), (32, 8), (32, 1), (32, 1)], (6, 32))
    assert flops_of(quantized) == 2 * 6 * 64 * 32


def test_gradients_of_experts_count_each_row_once():
    # 12 rows, 5 inputs, 7 outputs, 4 experts: the product, and its two gradients.
    def loss_fn(params, batch, rng):
        rows, order = batch["x"] @ params["into"], mx.sort(batch["expert"])
        return mx.square(mx.gather_mm(rows, params["experts"], rhs_indices=order, sorted_indices=True)).mean()

    params = {"into": mx.zeros((3, 5)), "experts": mx.zeros((4, 5, 7))}
    batch = {"x": mx.zeros((12, 1, 3)), "expert": mx.zeros(12, mx.uint32)}
    step = ps.train_step(loss_fn, TRANSFORM)
    found = step_flops(step, ps.TrainState.create(params, TRANSFORM), batch)
    assert found == 2 * (12 * 3 * 5) * 2 + 2 * (12 * 5 * 7) * 3


def test_nothing_is_computed_and_no_trace_is_counted():
    """A step that cannot fit: two products of 8 TB each."""
    step = ps.compiled(ps.train_step(lambda p, b, rng: (b["x"] @ p["w"]).sum(), ps.optimizers.sgd(0.1)))
    state = ps.TrainState.create({"w": mx.zeros((4, 4))}, ps.optimizers.sgd(0.1))
    size = 1_000_000
    row = mx.zeros((1, 4))
    found = ps.metrics.step_flops(step, state, {"x": mx.broadcast_to(row, (size, 4))})
    assert found == 2 * dense(size, 4, 4, passes=1)


@pytest.mark.parametrize(("change", "said"), [({"layers": 0}, "layers must be at least 1, got 0")])
def test_the_formula_refuses_impossible_sizes(change, said):
    with pytest.raises(ValueError, match=f"^transformer_flops: {said}"):
        ps.metrics.transformer_flops(10, **{"layers": 1, "width": 2, "context": 3, **change})


@pytest.mark.parametrize("lazy", [False, True])
def test_a_step_that_captures_the_parameters_that_it_receives_is_counted(lazy):
    """`drift` keeps the first parameters, which are those of the first state."""
    params = {"w": mx.ones((3, 3)) + 1}
    if not lazy:
        mx.eval(params)
    state = ps.TrainState.create(params, TRANSFORM)
    step = ps.train_step(
        lambda held, batch, rng: mx.square((held["w"] - params["w"]) @ batch).sum(),
        TRANSFORM,
        measure=[ps.metrics.drift(params), ps.metrics.weight_norms()],
    )
    assert step_flops(step, state, mx.ones(3)) == dense(1, 3, 3, passes=2)
