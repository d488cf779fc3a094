"""GPT-2 as an `mlx.nn` module, and its training by hand with `mlx.optimizers`."""

import os
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from benchmarks.peers.driving import Driver
from benchmarks.workloads import gpt


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self._heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width, gpt.EPSILON), nn.LayerNorm(width, gpt.EPSILON)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gelu = nn.GELU(approx="precise")

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, seq, width] for the same shape."""
        rows, seq, width = x.shape
        parts = mx.split(self.qkv(self.ln1(x)), 3, axis=-1)
        q, k, v = (part.reshape(rows, seq, self._heads, -1).transpose(0, 2, 1, 3) for part in parts)
        scale = (width // self._heads) ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
        x = x + self.out(mixed.transpose(0, 2, 1, 3).reshape(rows, seq, width))
        return x + self.down(self.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """GPT-2 of a shape, with the weights that all contestants start from."""

    def __init__(self, shape: gpt.Shape):
        super().__init__()
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.blocks = [Block(shape.width, shape.heads) for _ in range(shape.layers)]
        self.ln = nn.LayerNorm(shape.width, gpt.EPSILON)
        self.load_weights([(name, mx.array(value)) for name, value in gpt.weights(shape).items()])
        mx.eval(self.parameters())

    def states(self, tokens: mx.array) -> mx.array:
        """Return [batch, seq, width], from which the head computes the logits."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln(x)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, vocabulary] for tokens [batch, seq]."""
        return self.wte.as_linear(self.states(tokens))


class OnMLX(Driver):
    """Waiting and memory of any contestant on MLX. The variable BENCHMARK_DEVICE=cpu chooses the CPU."""

    def __init__(self):
        if os.environ.get("BENCHMARK_DEVICE") == "cpu":
            mx.set_default_device(mx.cpu)

    def wait(self, started: Any) -> None:
        """Wait for these arrays, which are evaluated together with the rest of the step."""
        mx.eval(started)

    def synchronize(self) -> None:
        """Wait for the stream."""
        mx.synchronize()

    def release(self) -> None:
        """Empty the cache of buffers."""
        mx.clear_cache()

    def reset_peak(self) -> None:
        """Start a new peak."""
        mx.reset_peak_memory()

    def peak_bytes(self) -> int | None:
        """Return the peak of arrays that were alive, without MLX's cache of buffers."""
        return mx.get_peak_memory()


class MLXDriver(OnMLX):
    """Batches and metrics of any contestant on MLX."""

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__()
        self._batches = [
            {"inputs": mx.array(inputs), "targets": mx.array(targets)}
            for inputs, targets in gpt.batches(shape, microbatches)
        ]
        mx.eval(self._batches)
        self._made = 0

    def batch(self) -> dict[str, mx.array]:
        """Return the next batch."""
        self._made += 1
        return self._batches[(self._made - 1) % gpt.BATCHES]

    def read(self, started: Any) -> list[float]:
        """Return loss and norm."""
        return [value.item() for value in started]


class ByHand(MLXDriver):
    """MLX's documented way, a model and an optimizer that a compiled step mutates, with master weights."""

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__(shape, microbatches)
        model, dtype = GPT(shape), getattr(mx, shape.dtype)
        optimizer = optim.AdamW(gpt.LEARNING_RATE, weight_decay=gpt.WEIGHT_DECAY, bias_correction=True)
        optimizer.init(model.trainable_parameters())
        self._captured = captured = [model.state, optimizer.state]

        def loss_fn(params: Any, inputs: mx.array, targets: mx.array) -> mx.array:
            model.update(tree_map(lambda p: p.astype(dtype), params))
            return mx.fast.cross_entropy(model(inputs), targets).mean()

        loss_and_grad = mx.value_and_grad(loss_fn)
        capturing = partial(mx.compile, inputs=captured, outputs=captured)

        def updated(grads: Any) -> mx.array:
            grads, norm = optim.clip_grad_norm(grads, gpt.MAX_NORM)
            model.update(optimizer.apply_gradients(grads, model.trainable_parameters()))
            return norm

        def whole(inputs: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
            params = model.trainable_parameters()
            loss, grads = loss_and_grad(params, inputs, targets)
            model.update(params)  # else the cast copies would be what the optimizer updates
            return loss, updated(grads)

        def part(inputs: mx.array, targets: mx.array, summed: Any) -> tuple[mx.array, Any]:
            params = model.trainable_parameters()
            loss, grads = loss_and_grad(params, inputs, targets)
            model.update(params)
            grads = tree_map(lambda g: g / microbatches, grads)
            return loss / microbatches, grads if summed is None else tree_map(mx.add, summed, grads)

        self._microbatches = microbatches
        self._whole, self._part, self._update = capturing(whole), capturing(part), capturing(updated)
        mx.eval(captured)

    def start(self) -> Any:
        """Start a step; in microbatches, each is evaluated before the next, so that memory is bounded."""
        batch = self.batch()
        if self._microbatches == 1:
            metrics = self._whole(batch["inputs"], batch["targets"])
            mx.async_eval(metrics, self._captured)
            return metrics
        parts = (mx.split(batch[name], self._microbatches) for name in ("inputs", "targets"))
        losses, summed = [], None
        for inputs, targets in zip(*parts, strict=True):
            loss, summed = self._part(inputs, targets, summed)
            losses.append(loss)
            mx.async_eval(loss, summed)
        norm = self._update(summed)
        metrics = [mx.stack(losses).sum(), norm]
        mx.async_eval(metrics, self._captured)
        return metrics
