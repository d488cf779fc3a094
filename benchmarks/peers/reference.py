"""The first steps of GPT-2 in float32, written out in plain array operations: the truth for the others."""

import math
from typing import Any

import mlx.core as mx

from benchmarks.peers.with_mlx import MLXDriver
from benchmarks.workloads import gpt


class Step(MLXDriver):
    """Attention, norms, loss, clipping and AdamW without a fused function, a module or an optimizer."""

    def __init__(self, shape: gpt.Shape, microbatches: int):
        super().__init__(shape, microbatches)
        self._shape = shape
        self._params = {name: mx.array(value) for name, value in gpt.weights(shape).items()}
        self._first = {name: mx.zeros_like(value) for name, value in self._params.items()}
        self._second = dict(self._first)

    def _norm(self, p: Any, name: str, x: mx.array) -> mx.array:
        centered = x - x.mean(-1, keepdims=True)
        scale = mx.rsqrt(mx.square(centered).mean(-1, keepdims=True) + gpt.EPSILON)
        return centered * scale * p[f"{name}.weight"] + p[f"{name}.bias"]

    def _linear(self, p: Any, name: str, x: mx.array) -> mx.array:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def _block(self, p: Any, name: str, x: mx.array) -> mx.array:
        rows, seq, width = x.shape
        heads = self._linear(p, f"{name}.qkv", self._norm(p, f"{name}.ln1", x))
        q, k, v = heads.reshape(rows, seq, 3, self._shape.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = (q @ k.swapaxes(-1, -2)) * (width // self._shape.heads) ** -0.5
        future = mx.arange(seq)[:, None] < mx.arange(seq)
        mixed = mx.softmax(mx.where(future, -1e30, scores), axis=-1) @ v
        x = x + self._linear(p, f"{name}.out", mixed.transpose(0, 2, 1, 3).reshape(rows, seq, width))
        h = self._linear(p, f"{name}.up", self._norm(p, f"{name}.ln2", x))
        h = 0.5 * h * (1 + mx.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h)))
        return x + self._linear(p, f"{name}.down", h)

    def _loss(self, p: Any, batch: Any) -> mx.array:
        x = p["wte.weight"][batch["inputs"]] + p["wpe.weight"][: self._shape.context]
        for i in range(self._shape.layers):
            x = self._block(p, f"blocks.{i}", x)
        logits = self._norm(p, "ln", x) @ p["wte.weight"].T
        picked = mx.take_along_axis(logits, batch["targets"][..., None], axis=-1)
        return (mx.logsumexp(logits, axis=-1, keepdims=True) - picked).mean()

    def start(self) -> Any:
        """Make a step."""
        loss, grads = mx.value_and_grad(self._loss)(self._params, self.batch())
        squares = (mx.square(g).sum(-1).sum() for g in grads.values())  # a long row loses digits on a CPU
        norm = mx.sqrt(sum(squares, mx.array(0.0)))
        clip, rate = mx.minimum(1.0, gpt.MAX_NORM / norm), gpt.LEARNING_RATE
        for name, g in grads.items():
            p, m, v = self._params[name], self._first[name], self._second[name]
            self._first[name] = m = 0.9 * m + 0.1 * (g * clip)
            self._second[name] = v = 0.999 * v + 0.001 * mx.square(g * clip)
            m, v = m / (1 - 0.9**self._made), v / (1 - 0.999**self._made)
            self._params[name] = p - rate * (m / (mx.sqrt(v) + 1e-8) + gpt.WEIGHT_DECAY * p)
        mx.eval(loss, norm, self._params, self._first, self._second)
        return loss, norm
