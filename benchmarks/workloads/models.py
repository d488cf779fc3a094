"""What is trained: models, and batches drawn from a key. The same in every process.

All use squared ReLU: its gradient has no jump, so contestants that round differently stay together.
Under ReLU a rounding error that crosses zero moved parameters by 5e-4 of their way in 20 steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from purestep._core.types import Batch, Params


class Workload(NamedTuple):
    """A model and its data.

    Attributes:
        about: one line for the table.
        steps: in a turn, some 50 to 100 ms on a CPU: ratios are then of neighbours in time.
        model: from a dropout rate to a module.
        batch: from a key to `{"inputs", "targets"}`; the module maps inputs to logits of the targets.
    """

    about: str
    steps: int
    model: Callable[[float], nn.Module]
    batch: Callable[[mx.array], Batch]


class Perceptron(nn.Module):
    """16-64-64-4."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4)]

    def __call__(self, x: mx.array) -> mx.array:
        """Return logits [batch, 4] for x [batch, 16]."""
        for layer in self.layers[:-1]:
            x = nn.relu2(layer(x))
        return self.layers[-1](x)


class Leaves(nn.Module):
    """A hundred residual blocks of three tiny arrays each: the cost of a leaf, and little else."""

    def __init__(self, width: int = 8, blocks: int = 100):
        super().__init__()
        self.w = [0.1 * mx.random.normal((width, width)) for _ in range(blocks)]
        self.b = [mx.zeros(width) for _ in range(blocks)]
        self.g = [mx.ones(width) for _ in range(blocks)]

    def __call__(self, x: mx.array) -> mx.array:
        """Return logits [batch, width] for x of the same shape."""
        for w, b, g in zip(self.w, self.b, self.g, strict=True):
            x = x + nn.relu2(x @ w + b) * g * 0.1
        return x


class Transformer(nn.Module):
    """A causal pre-norm transformer of MLX's own layers, with learned positions."""

    def __init__(self, vocabulary: int, seq: int, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(seq, width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.TransformerEncoder(layers, width, heads, dropout=dropout, activation=nn.relu2)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, vocabulary] for tokens [batch, seq]."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return self.head(self.encoder(self.dropout(x), "causal"))


class Size(NamedTuple):
    """A transformer and its batches.

    Attributes:
        about: one line for the table.
        steps: in a turn.
        shape: vocabulary, context, width, layers and heads.
        rows: of a batch.
        dtype: of the forward and backward pass.
    """

    about: str
    steps: int
    shape: tuple[int, int, int, int, int]
    rows: int
    dtype: mx.Dtype

    def problem(self) -> tuple[Any, Params, ps.GradientTransform]:
        """Return a loss function, its first parameters, and a transform that clips and then is AdamW."""
        with ps.rng.scope(mx.random.key(0)):
            model = Transformer(*self.shape, dropout=0.0)
            mx.eval(model.parameters())
        apply, params, _ = ps.functional(model)

        def loss_fn(params: Params, batch: Batch, rng: mx.array) -> ps.Mean:
            logits = apply(ps.tree.cast(params, self.dtype), batch["inputs"], rng=rng)
            return ps.losses.cross_entropy(logits, batch["targets"])

        clip, adamw = ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-4)
        return loss_fn, params, ps.chain(clip, adamw)


GPT2 = Size(
    "GPT-2's 12 layers of width 768 with an own head (163M), 8 x 1024 tokens", 60,
    (50304, 1024, 768, 12, 12), 8, mx.bfloat16,
)  # fmt: skip


def vectors(key: mx.array, rows: int, width: int, classes: int, scale: float) -> Batch:
    """Return normal inputs [rows, width] of this standard deviation, and random classes [rows]."""
    first, second = mx.random.split(key)
    inputs = scale * mx.random.normal((rows, width), key=first)
    return {"inputs": inputs, "targets": mx.random.randint(0, classes, (rows,), key=second)}


def tokens(key: mx.array, rows: int, seq: int, vocabulary: int) -> Batch:
    """Return random tokens [rows, seq] and, for targets, the ones that follow."""
    drawn = mx.random.randint(0, vocabulary, (rows, seq + 1), key=key)
    return {"inputs": drawn[:, :-1], "targets": drawn[:, 1:]}


STEP: dict[str, Workload] = {
    "mlp": Workload(
        "perceptron 16-64-64-4, batch 32",
        100,
        lambda dropout: Perceptron(),
        lambda key: vectors(key, 32, 16, 4, 2.0),
    ),
    "transformer": Workload(
        "width 64, 2 layers, 4 heads, batch 4 x 32 tokens, dropout 0.1",
        4,
        lambda dropout: Transformer(128, 32, 64, 2, 4, dropout),
        lambda key: tokens(key, 4, 32, 128),
    ),
    "leaves": Workload(
        "300 arrays of 8 to 64 numbers, batch 32",
        4,
        lambda dropout: Leaves(),
        lambda key: vectors(key, 32, 8, 4, 1.0),
    ),
}
