"""DoRA: adapters that train the length of each row of the weight apart from its direction (arXiv:2402.09353).

The weight is `m * (W + update) / |W + update|`, with one length for each output. The paper treats the
denominator as a constant in the gradient. The layers below start from the output of their base, which they
change by a factor of 1 and an update of 0: they equal it bit for bit before training.
"""

from typing import Any

import mlx.core as mx

from purestep._adapters.kinds import EMBEDDING, EXPERTS, LINEAR, Shape, dense
from purestep._adapters.low_rank import (
    Adapter,
    columns_update,
    experts_update,
    linear_update,
    rows_update,
)


class MagnitudeAdapter(Adapter):
    """A base layer with a low-rank update and a trained length for each row of the weight."""

    method = "dora"
    trained = ("lora_a", "lora_b", "m")

    def __init__(
        self, base: Any, shape: Shape, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float
    ):
        super().__init__(base, shape, lora_a, lora_b, scale, dropout)
        self.m = lengths(dense(base)).astype(lora_a.dtype)

    def factors(self) -> mx.array:
        """Return the factor of each row of the updated weight, in float32."""
        updated = dense(self.base) + self.update_of_weight()
        # `m` may have a reduced dtype. Rounding the lengths to it makes the factors at the start exactly 1.
        return self.m.astype(mx.float32) / mx.stop_gradient(
            lengths(updated).astype(self.m.dtype).astype(mx.float32)
        )

    def merged_weight(self) -> mx.array:
        return self.factors()[..., None] * super().merged_weight()


class DoRALinear(MagnitudeAdapter):
    """A linear layer with a low-rank update and trained lengths."""

    def __call__(self, x: mx.array) -> mx.array:
        return _scaled(self.base(x), self.base.get("bias"), self.factors(), linear_update(self, x))


class DoRAEmbedding(MagnitudeAdapter):
    """An embedding with a low-rank update and trained lengths."""

    base_name = "embedding"

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        return _scaled(y, None, self.factors()[x][..., None], rows_update(self, x, y.dtype))

    def as_linear(self, x: mx.array) -> mx.array:
        """Apply the embedding as a linear layer, as tied output layers do."""
        return _scaled(self.base.as_linear(x), None, self.factors(), columns_update(self, x))


class DoRAExperts(MagnitudeAdapter):
    """A layer of experts, each with a low-rank update and trained lengths."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y = self.base(x, indices, sorted_indices=sorted_indices)
        bias = self.base.get("bias")
        if bias is not None:
            bias = mx.expand_dims(bias[indices], -2)
        factors = mx.expand_dims(self.factors()[indices], -2)
        return _scaled(y, bias, factors, experts_update(self, x, indices, sorted_indices))


def lengths(weight: mx.array) -> mx.array:
    """Return the length of each row."""
    return mx.sqrt(mx.sum(mx.square(weight), axis=-1))


def _scaled(y: mx.array, bias: mx.array | None, factors: mx.array, update: mx.array) -> mx.array:
    """Return `factors * (y - bias + update) + bias`, in the dtype of `y`; it is `y` for 1 and 0."""
    plain = y if bias is None else y - bias
    # `factors - 1` is rounded to the dtype of `y`, not `factors`: these are near 1.
    return y + (factors - 1).astype(y.dtype) * plain + (factors * update).astype(y.dtype)


DORA: dict[str, type[Adapter]] = {LINEAR: DoRALinear, EMBEDDING: DoRAEmbedding, EXPERTS: DoRAExperts}
"""The class of adapters for each kind of layer."""
