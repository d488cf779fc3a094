"""A small step with measurements, for the tests of this room."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


def linear(measure: Any, *, microbatches: int = 1, transform: Any = None, loss: Any = None) -> Any:
    """Return `(step, state)` for a least-squares fit of `w` [2] and twelve layers of a scalar."""
    params = {"w": mx.array([1.0, -2.0]), "layers": [{"b": mx.array([float(i)])} for i in range(12)]}

    def loss_fn(params: Any, batch: Any, rng: Any) -> Any:
        shift = sum(i * layer["b"].sum() for i, layer in enumerate(params["layers"]))
        return ps.Mean.of(mx.square(batch["x"] @ params["w"] + shift - batch["y"]))

    transform = ps.optimizers.sgd(1e-3) if transform is None else transform
    step = ps.train_step(loss or loss_fn, transform, microbatches=microbatches, measure=measure)
    return step, ps.TrainState.create(params, transform)


def rows(count: int = 4) -> dict[str, mx.array]:
    """Return a batch of random rows."""
    first, second = mx.random.split(mx.random.key(3))
    return {"x": mx.random.normal((count, 2), key=first), "y": mx.random.normal((count,), key=second)}


class Block(nn.Module):
    """Attention and a ReLU; the same projection is called twice."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.attention = nn.MultiHeadAttention(width, heads)
        self.shared, self.relu = nn.Linear(width, width), nn.ReLU()

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, length, width]."""
        x = x + self.attention(x, x, x, "causal")
        return self.relu(self.shared(self.relu(self.shared(x))))


class Model(nn.Module):
    """Blocks."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.layers = [Block() for _ in range(blocks)]

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, length, width]."""
        for layer in self.layers:
            x = layer(x)
        return x


def model_step(measure: Any, *, microbatches: int = 1, **options: Any) -> Any:
    """Return `(step, state, batch, apply)` for `Model`."""
    with ps.rng.scope(mx.random.key(1)):
        apply, params, _ = ps.functional(Model(), **options)
        mx.eval(params)
    transform = ps.optimizers.adamw(1e-3)

    def loss_fn(params: Any, batch: Any, rng: Any) -> Any:
        return ps.Mean.of(mx.square(apply(params, batch["x"]) - batch["y"]))

    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=measure)
    first, second = mx.random.split(mx.random.key(2))
    batch = {
        "x": mx.random.normal((4, 5, 8), key=first),
        "y": mx.random.normal((4, 5, 8), key=second),
    }
    return step, ps.TrainState.create(params, transform), batch, apply


def numbers(metrics: Any, name: str) -> dict[str, float]:
    """Return the results of one measurement, by key."""
    mx.eval(metrics)
    return {
        key.removeprefix(name).removeprefix("/"): value.item()
        for key, value in metrics.items()
        if key == name or key.startswith(f"{name}/")
    }


def plain_sums(kind: str, arrays: list[mx.array]) -> tuple[mx.array, list[int]]:
    """Return the sums of `cuda.sums` by MLX's operations: parts of three elements."""
    half = len(arrays) // 2
    tests = {
        "squares": lambda x, _: mx.square(x),
        "distances": lambda x, y: mx.square(x - y),
        "zeros": lambda x, _: x == 0,
        "nonfinite": lambda x, _: ~mx.isfinite(x),
    }
    pairs = zip(arrays, arrays[half:] if kind == "distances" else arrays, strict=False)
    found, counts = [], []
    for x, y in pairs:
        flat = tests[kind](x.astype(mx.float32), y.astype(mx.float32)).astype(mx.float32).reshape(-1)
        flat = mx.pad(flat, (0, -flat.size % 3)).reshape(-1, 3)
        found.append(flat.sum(axis=1))
        counts.append(flat.shape[0])
    return mx.concatenate(found), counts
