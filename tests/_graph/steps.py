"""Training steps of several kinds, with a state and a batch: what is captured and predicted."""

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiHeadAttention(width, 4)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(0.1)

    def __call__(self, x, mask):
        h = self.first(x)
        x = x + self.attention(h, h, h, mask)
        return x + self.dropout(self.down(self.act(self.up(self.second(x)))))


class Transformer(nn.Module):
    def __init__(self, vocabulary=256, width=64, layers=3):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = [Block(width) for _ in range(layers)]
        self.head = nn.Linear(width, vocabulary)

    def __call__(self, tokens):
        x = self.embedding(tokens)
        mask = nn.MultiHeadAttention.create_additive_causal_mask(tokens.shape[1]).astype(x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def seeded(make, *arguments):
    with ps.rng.scope(mx.random.key(0)):
        return make(*arguments)


def _transformer(*, dtype=None, optimizer=None, batch=4, sequence=128, step=None, **options):
    apply, params, _ = ps.functional(seeded(Transformer), **options)

    def loss_fn(params, batch, rng):
        inputs, targets = ps.losses.shift(batch)
        return ps.losses.cross_entropy(apply(params, inputs, rng=rng), targets)

    loss = loss_fn if dtype is None else ps.compute_in(loss_fn, dtype)
    adamw = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-3))
    transform = adamw if optimizer is None else optimizer
    state = ps.TrainState.create(params, transform, seed=0)
    return ps.train_step(loss, transform, **(step or {})), state, mx.zeros((batch, sequence + 1), mx.int32)


def _adapters():
    model = seeded(lambda: nn.Sequential(*(nn.Linear(256, 256) for _ in range(6))))
    mx.eval(model.parameters())  # as after loading
    adapted = ps.adapters.lora(model, ["layers.*"], rank=4, scale=2.0, key=mx.random.key(1))
    apply, params, _ = ps.functional(adapted)
    return _regression(apply, params, mx.zeros((2048, 256)), ps.optimizers.adam(1e-3))


def _perceptron():
    model = seeded(lambda: nn.Sequential(*(x for _ in range(4) for x in (nn.Linear(256, 256), nn.ReLU()))))
    apply, params, _ = ps.functional(model)
    return _regression(apply, params, mx.zeros((1024, 256)), ps.optimizers.adamw(1e-3))


def _convolution():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU())
    )
    apply, params, _ = ps.functional(model)
    return _regression(apply, params, mx.zeros((32, 24, 24, 3)), ps.optimizers.sgd(1e-2, momentum=0.9))


def _regression(apply, params, batch, transform):
    def loss_fn(params, batch, rng):
        return (apply(params, batch, rng=rng) ** 2).mean()

    return ps.train_step(loss_fn, transform), ps.TrainState.create(params, transform, seed=0), batch


STEPS = {
    "transformer": _transformer,
    "bfloat16": lambda: _transformer(dtype=mx.bfloat16),
    "recomputed": lambda: _transformer(remat="layers.*"),
    "microbatches": lambda: _transformer(step={"microbatches": 2}),
    "adapters": _adapters,
    "perceptron": _perceptron,
    "convolution": _convolution,
}
