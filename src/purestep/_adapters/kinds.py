"""The layers that can be adapted: their kind, their shape, and their weight, plain or quantized."""

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

LINEAR, EMBEDDING, EXPERTS = "linear", "embedding", "experts"
_OF_EXPERTS = ("num_experts", "output_dims")
_BITS = {"affine": 4, "mxfp4": 4, "nvfp4": 4, "mxfp8": 8}  # what MLX takes for `bits=None`


class Shape(NamedTuple):
    """The kind of a layer and the two sides of its matrix.

    Attributes:
        kind: `"linear"`, `"embedding"` or `"experts"`.
        inputs: features of the input; rows of an embedding.
        outputs: features of the output; columns of an embedding.
        experts: the number of matrices; 0 if the layer is not a layer of experts.
    """

    kind: str
    inputs: int
    outputs: int
    experts: int = 0


def shape_of(layer: nn.Module) -> Shape | None:
    """Return the shape of a layer, or `None` if it cannot be adapted."""
    weight: Any = layer.get("weight")
    if not isinstance(weight, mx.array):
        return None
    if isinstance(layer, (nn.Linear, nn.QuantizedLinear)) and weight.ndim == 2:
        return Shape(LINEAR, columns(layer), weight.shape[0])
    if isinstance(layer, (nn.Embedding, nn.QuantizedEmbedding)) and weight.ndim == 2:
        return Shape(EMBEDDING, weight.shape[0], columns(layer))
    # The expert layers of mlx-lm, which is not a dependency.
    if weight.ndim == 3 and all(hasattr(layer, name) for name in _OF_EXPERTS):
        return Shape(EXPERTS, columns(layer), weight.shape[1], weight.shape[0])
    return None


def is_quantized(layer: nn.Module) -> bool:
    """Tell whether the weight of a layer is quantized."""
    return "scales" in layer and hasattr(layer, "bits")


def columns(layer: Any) -> int:
    """Return the length of the rows of a layer's weight, before quantization."""
    length = layer["weight"].shape[-1]
    return length * 32 // (layer.bits or _BITS[layer.mode]) if is_quantized(layer) else length


def count(layer: Any) -> int:
    """Return the number of entries of a layer's weight, before quantization."""
    weight = layer["weight"]
    return weight.size // weight.shape[-1] * columns(layer)


def dense(layer: Any) -> mx.array:
    """Return the weight of a layer as float32."""
    if not is_quantized(layer):
        return layer["weight"].astype(mx.float32)
    scale = layer.get("global_scale")
    if scale is None:
        return _dequantized(layer, layer["weight"], layer["scales"], layer.get("biases"), None)
    parts = zip(layer["weight"], layer["scales"], scale, strict=True)  # one scale for each expert
    return mx.stack([_dequantized(layer, weight, scales, None, each) for weight, scales, each in parts])


def write_weight(layer: Any, weight: mx.array) -> None:
    """Put a float32 weight into a layer, in the layer's dtype or quantization."""
    if not is_quantized(layer):
        layer["weight"] = weight.astype(layer["weight"].dtype)
        return
    if layer["scales"].dtype != mx.uint8:  # the dtype of the scales is that of the weight before quantization
        weight = weight.astype(layer["scales"].dtype)
    if layer.get("global_scale") is not None:
        scale = mx.max(mx.abs(weight), axis=(-2, -1)).astype(mx.float32)
        parts = [_quantized(layer, part, each) for part, each in zip(weight, scale, strict=True)]
        layer["weight"], layer["scales"] = (mx.stack(list(each)) for each in zip(*parts, strict=True))
        layer["global_scale"] = scale
        return
    layer["weight"], layer["scales"], *biases = _quantized(layer, weight, None)
    if biases:
        layer["biases"] = biases[0]


def _dequantized(layer: Any, weight: Any, scales: Any, biases: Any, scale: mx.array | None) -> mx.array:
    return mx.dequantize(
        weight,
        scales,
        biases,
        layer.group_size,
        layer.bits,
        mode=layer.mode,
        global_scale=scale,
        dtype=mx.float32,
    )


def _quantized(layer: Any, weight: mx.array, scale: mx.array | None) -> Any:
    return mx.quantize(weight, layer.group_size, layer.bits, mode=layer.mode, global_scale=scale)
