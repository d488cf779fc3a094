"""Layers with a low-rank update. Parameters have the names and shapes of mlx-lm's."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks
from purestep._core.rng import scope

LINEAR = (nn.Linear, nn.QuantizedLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)


class Adapted(nn.Module):
    """A frozen layer with an update of low rank.

    Attributes:
        lora_a: float32 [inputs, rank].
        lora_b: float32 [rank, outputs], zeros at the start.
        scale: factor of the update.
        rate: the dropout rate of the update's input.
    """

    kind = "lora"
    held = "linear"

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array):
        super().__init__()
        inputs, outputs = sizes(base)
        bound = 1 / math.sqrt(inputs)
        self[self.held] = base
        self.dropout = nn.Dropout(dropout)
        self.rate, self.scale = dropout, scale
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank), key=key)
        self.lora_b = mx.zeros((rank, outputs))

    @property
    def base(self) -> Any:
        """The layer without the update."""
        return self[self.held]

    def update_of(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the update for inputs, computed in the dtype of the activations."""
        product = (self.dropout(x) @ self.lora_a.astype(dtype)) @ self.lora_b.astype(dtype)
        return (self.scale * product).astype(dtype)

    def delta(self) -> mx.array:
        """Return the update of the weight, float32, in the shape of the weight."""
        return (self.scale * (self.lora_a @ self.lora_b)).T

    def merged_weight(self, weight: mx.array) -> mx.array:
        """Return the weight with the update, float32."""
        return weight.astype(mx.float32) + self.delta()


class LoRALinear(Adapted):
    """`y = base(x) + scale * dropout(x) @ lora_a @ lora_b`."""

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        return y + self.update_of(x, x.dtype).astype(y.dtype)


class LoRAEmbedding(Adapted):
    """`y = base(tokens) + scale * dropout(lora_a[tokens]) @ lora_b`."""

    held = "embedding"

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        product = self.dropout(self.lora_a[x].astype(y.dtype)) @ self.lora_b.astype(y.dtype)
        return y + (self.scale * product).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return the logits of a head that is tied to the embedding."""
        y = self.base.as_linear(x)
        product = (self.dropout(x) @ self.lora_b.T.astype(x.dtype)) @ self.lora_a.T.astype(x.dtype)
        return y + (self.scale * product).astype(y.dtype)

    def delta(self) -> mx.array:
        return self.scale * (self.lora_a @ self.lora_b)


class DoRALinear(Adapted):
    """The weight's rows keep a trained length `m`; the update changes only their direction.

    As in the paper's section 4.3, no gradient flows through the norm.
    """

    kind = "dora"

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array):
        super().__init__(base, rank, scale, dropout, key)
        self.m = mx.linalg.norm(dense(base).astype(mx.float32), axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        weight = dense(self.base)
        y = x @ weight.T
        out = y + self.update_of(x, x.dtype).astype(y.dtype)
        length = mx.stop_gradient(mx.linalg.norm(super().merged_weight(weight), axis=1))
        out = (self.m / length).astype(out.dtype) * out
        return out + self.base.bias if "bias" in self.base else out

    def merged_weight(self, weight: mx.array) -> mx.array:
        merged = super().merged_weight(weight)
        return (self.m / mx.linalg.norm(merged, axis=1))[:, None] * merged


def sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a layer; the inputs of an embedding are its rows."""
    rows, columns = layer.weight.shape
    if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        columns = columns * 32 // layer.bits
    return (rows, columns) if isinstance(layer, EMBEDDING) else (columns, rows)


def dense(layer: Any) -> mx.array:
    """Return the weight of a layer, dequantized if it is quantized."""
    if isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        return mx.dequantize(
            layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits, mode=layer.mode
        )
    return layer.weight


def merged(layer: Adapted) -> nn.Module:
    """Return a plain layer with the update in its weight; a quantized one is quantized again."""
    with scope(mx.random.key(0)):  # MLX's layers draw first weights, which are replaced
        return _merged(layer)


def _merged(layer: Adapted) -> nn.Module:
    base = layer.base
    weight = dense(base)
    weight = layer.merged_weight(weight).astype(weight.dtype)
    if isinstance(base, EMBEDDING):
        plain: Any = nn.Embedding(1, 1)
    else:
        plain = nn.Linear(1, 1, bias=False)
        if "bias" in base:
            plain.bias = base.bias
    plain.weight = weight
    if isinstance(base, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        plain = plain.to_quantized(group_size=base.group_size, bits=base.bits, mode=base.mode)
    return plain


def adapted(caller: str, path: str, layer: Any, kind: str, *options: Any) -> Adapted:
    """Return a layer with an adapter; refuse a layer that cannot have one."""
    if isinstance(layer, Adapted):
        raise checks.error(caller, f"{path} already has an adapter: merge or remove it first")
    rank = options[0]
    if type(layer) in LINEAR:
        kind_of: Any = DoRALinear if kind == "dora" else LoRALinear
    elif type(layer) in EMBEDDING and kind == "lora":
        kind_of = LoRAEmbedding
    else:
        allowed = "Linear or QuantizedLinear" + (
            ", Embedding or QuantizedEmbedding" if kind == "lora" else ""
        )
        raise checks.error(caller, f"{path} must be {allowed}, got {type(layer).__name__}")
    least = min(sizes(layer))
    if rank > least:
        raise checks.error(caller, f"rank must be at most {least} for {path}, got {rank}")
    return kind_of(layer, *options)
