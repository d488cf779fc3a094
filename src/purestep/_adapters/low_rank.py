"""LoRA: layers whose output has a low-rank update, `scale * (x @ a) @ b`.

The names of the arrays and of the base layer are those of mlx-lm, so files of adapters have the same names.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import EMBEDDING, EXPERTS, LINEAR, Shape, dense
from purestep._layers.parts import lookup


class Adapter(nn.Module):
    """A base layer with a low-rank update.

    Args:
        base: the layer; it is kept under the name `base_name`.
        shape: its shape.
        lora_a: [inputs, rank]; for experts [experts, rank, inputs].
        lora_b: [rank, outputs]; for experts [experts, outputs, rank].
        scale: factor of the update.
        dropout: probability, in [0, 1).
    """

    base_name = "linear"
    method = "lora"
    trained = ("lora_a", "lora_b")

    def __init__(
        self, base: Any, shape: Shape, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float
    ):
        super().__init__()
        self[self.base_name] = base
        self.kind = shape.kind
        self.scale = scale
        self.rate = dropout
        self.dropout = nn.Dropout(dropout)
        self.lora_a = lora_a
        self.lora_b = lora_b

    @property
    def base(self) -> Any:
        """The layer without its update."""
        return self[self.base_name]

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return self.lora_a.shape[-2 if self.kind == EXPERTS else -1]

    def _extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale}"

    def update_of_weight(self) -> mx.array:
        """Return what the adapter adds to the weight of its base, in float32."""
        a, b = self.lora_a.astype(mx.float32), self.lora_b.astype(mx.float32)
        if self.kind == LINEAR:
            return self.scale * (a @ b).T
        return self.scale * (b @ a if self.kind == EXPERTS else a @ b)

    def merged_weight(self) -> mx.array:
        """Return the weight of a plain layer that equals this one, in float32."""
        return dense(self.base) + self.update_of_weight()


class LoRALinear(Adapter):
    """A linear layer with a low-rank update."""

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        return y + linear_update(self, x).astype(y.dtype)


class LoRAEmbedding(Adapter):
    """An embedding with a low-rank update."""

    base_name = "embedding"

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        return y + rows_update(self, x, y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Apply the embedding as a linear layer, as tied output layers do."""
        y = self.base.as_linear(x)
        return y + columns_update(self, x).astype(y.dtype)


class LoRAExperts(Adapter):
    """A layer of experts with a low-rank update for each of them."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y = self.base(x, indices, sorted_indices=sorted_indices)
        return y + experts_update(self, x, indices, sorted_indices).astype(y.dtype)


# Products with activations are computed in their dtype: float32 adapters do not widen a bfloat16 model.
def linear_update(layer: Any, x: mx.array) -> mx.array:
    """Return the scaled update of a linear layer."""
    z = layer.dropout(x) @ layer.lora_a.astype(x.dtype) @ layer.lora_b.astype(x.dtype)
    return layer.scale * z


def rows_update(layer: Any, x: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return the scaled update of the rows of an embedding."""
    z = layer.dropout(lookup(layer.lora_a, x) @ layer.lora_b)
    return (layer.scale * z).astype(dtype)


def columns_update(layer: Any, x: mx.array) -> mx.array:
    """Return the scaled update of an embedding that is applied as a linear layer."""
    z = layer.dropout(x) @ layer.lora_b.astype(x.dtype).T @ layer.lora_a.astype(x.dtype).T
    return layer.scale * z


def experts_update(layer: Any, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
    """Return the scaled update of a layer of experts."""
    z = layer.dropout(x)
    for array in (layer.lora_a, layer.lora_b):
        z = mx.gather_mm(
            z, array.astype(x.dtype).swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices
        )
    return layer.scale * z


LORA: dict[str, type[Adapter]] = {LINEAR: LoRALinear, EMBEDDING: LoRAEmbedding, EXPERTS: LoRAExperts}
"""The class of adapters for each kind of layer."""
