"""Add adapters to the layers of a module."""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import EXPERTS, Shape
from purestep._adapters.low_rank import LORA, Adapter
from purestep._adapters.magnitude import DORA
from purestep._adapters.rebuilding import Module, freeze_all_but_adapters, rebuilt
from purestep._adapters.selecting import selected
from purestep._core import checks
from purestep._core.rng import check_key, fold_in

_FLOATING = (mx.float32, mx.bfloat16, mx.float16)


def lora(
    module: Module,
    patterns: str | Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    rank_stabilized: bool = False,
    dtype: mx.Dtype | None = None,
    key: mx.array,
) -> Module:
    """Return a copy of a module with LoRA adapters in the layers that match, and everything else frozen.

    An adapted layer computes `layer(x) + scale * (dropout(x) @ lora_a) @ lora_b`. `lora_b` is zero at first,
    so the new module equals the old one bit for bit. `ps.functional` returns only the adapters in `params`.

    Layers that can be adapted: `nn.Linear`, `nn.Embedding`, their quantized forms in every mode, and the
    expert layers of mlx-lm (`SwitchLinear`). The update is computed in the dtype of the activations, and the
    output keeps the dtype of the layer's output. Call the function again to adapt other layers with another
    rank.

    Args:
        module: the module; it is left unchanged.
        patterns: one or several patterns of paths of layers (`*` any characters, `?` one), such as
            `"*.self_attn.q_proj"`. Layers without arrays, such as Dropout, are not matched.
        rank: of the update, at least 1 and at most the smaller side of each matrix.
        alpha: numerator of the scale, which is `alpha / rank`; greater than 0.
        scale: the factor of the update itself, greater than 0, in place of `alpha`. mlx-lm's default is 20.
        dropout: probability that an input of the update is zero in training mode, in [0, 1).
        rank_stabilized: divide `alpha` by the square root of the rank.
        dtype: of the adapters: float32 (the default), bfloat16 or float16.
        key: uint32 [2]. `lora_a` is uniform within +-1/sqrt(inputs), a function of the key and the path.

    Returns:
        A new module, which shares the data of the frozen arrays with the old one.

    Raises:
        ValueError: if a pattern matches no layer, a layer that cannot be adapted, or one that has an adapter;
            for a rank above the smaller side of a matrix; unless one of `alpha` and `scale` is given; for
            `scale` with `rank_stabilized`; for other arguments out of range; if the module cannot be copied.
        TypeError: if `module` is not a module.

    LoRA is arXiv:2106.09685, `rank_stabilized` is arXiv:2312.03732.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> adapted = lora(model, "layers.*", rank=2, alpha=4, key=mx.random.key(0))
    >>> mx.array_equal(adapted(mx.ones((1, 8))), model(mx.ones((1, 8))))
    array(True, dtype=bool)
    """
    caller = "lora"
    factor = _factor(caller, rank, alpha, scale, rank_stabilized)
    return _adapted(caller, LORA, module, patterns, rank, factor, dropout, dtype, key)


def dora(
    module: Module,
    patterns: str | Sequence[str],
    *,
    rank: int,
    alpha: float | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    rank_stabilized: bool = False,
    dtype: mx.Dtype | None = None,
    key: mx.array,
) -> Module:
    """Return a copy of a module with DoRA adapters in the layers that match, and everything else frozen.

    The weight of an adapted layer is `m * (W + update) / |W + update|`, with the update of `lora` and one
    trained length `m` for each row. The denominator is a constant in the gradient. Each call computes the
    lengths of the rows from the whole weight in float32, which costs time and memory for one weight.

    Args:
        module: as in `lora`.
        patterns: as in `lora`.
        rank: as in `lora`.
        alpha: as in `lora`.
        scale: as in `lora`.
        dropout: as in `lora`.
        rank_stabilized: as in `lora`.
        dtype: as in `lora`.
        key: as in `lora`.

    Returns:
        A new module, as `lora` returns.

    Raises:
        ValueError: as in `lora`.
        TypeError: as in `lora`.

    DoRA is arXiv:2402.09353.

    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> adapted = dora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(0))
    >>> from purestep import tree
    >>> tree.paths(adapted.trainable_parameters())
    ['layers.0.lora_a', 'layers.0.lora_b', 'layers.0.m']
    """
    caller = "dora"
    factor = _factor(caller, rank, alpha, scale, rank_stabilized)
    return _adapted(caller, DORA, module, patterns, rank, factor, dropout, dtype, key)


def _factor(caller: str, rank: int, alpha: float | None, scale: float | None, rank_stabilized: bool) -> float:
    rank = checks.integer(caller, "rank", rank, least=1)
    if not isinstance(rank_stabilized, bool):
        raise TypeError(f"{caller}: rank_stabilized must be True or False, got {rank_stabilized!r}")
    for name, value in (("alpha", alpha), ("scale", scale)):
        if isinstance(value, mx.array):  # the factor is a constant of the layer
            raise TypeError(f"{caller}: {name} must be a Python number, got an mx.array")
    if (alpha is None) == (scale is None):
        raise checks.error(caller, "exactly one of alpha and scale must be given")
    if scale is not None:
        if rank_stabilized:
            raise checks.error(caller, "rank_stabilized must be False with scale, which is the whole factor")
        return float(checks.number(caller, "scale", scale, above=0))
    numerator = checks.number(caller, "alpha", alpha, above=0)
    return float(numerator / (math.sqrt(rank) if rank_stabilized else rank))


def _adapted(
    caller: str,
    classes: Mapping[str, type[Adapter]],
    module: Module,
    patterns: str | Sequence[str],
    rank: int,
    scale: float,
    dropout: float,
    dtype: mx.Dtype | None,
    key: mx.array,
) -> Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be an mlx.nn.Module, got {type(module).__name__}")
    rank = checks.integer(caller, "rank", rank, least=1)
    if isinstance(dropout, mx.array):
        raise TypeError(f"{caller}: dropout must be a Python number, got an mx.array")
    dropout = checks.number(caller, "dropout", dropout, least=0, below=1)
    if dtype is not None and dtype not in _FLOATING:
        raise checks.error(caller, f"dtype must be float32, bfloat16 or float16, got {dtype}")
    check_key(caller, key)
    chosen = selected(caller, module, patterns)
    for path, (_, shape) in chosen.items():
        if rank > min(shape.inputs, shape.outputs):
            raise checks.error(
                caller,
                f"rank must be at most {min(shape.inputs, shape.outputs)} for {path}, got {rank}",
            )

    def make(path: str, base: Any) -> nn.Module:
        shape = chosen[path][1]
        drawn = first_a(shape, rank, fold_in(key, zlib.crc32(path.encode())))
        arrays = drawn.astype(dtype or mx.float32), zero_b(shape, rank, dtype or mx.float32)
        return classes[shape.kind](base, shape, *arrays, scale, dropout)

    new = rebuilt(caller, module, {path: layer for path, (layer, _) in chosen.items()}, make)
    freeze_all_but_adapters(new)
    return new


def first_a(shape: Shape, rank: int, key: mx.array) -> mx.array:
    """Return the first `lora_a` of a layer."""
    bound = 1 / math.sqrt(shape.inputs)
    return mx.random.uniform(-bound, bound, sizes(shape, rank)[0], key=key)


def zero_b(shape: Shape, rank: int, dtype: mx.Dtype) -> mx.array:
    """Return the first `lora_b` of a layer."""
    return mx.zeros(sizes(shape, rank)[1], dtype)


def sizes(shape: Shape, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of `lora_a` and `lora_b`."""
    if shape.kind == EXPERTS:
        return (shape.experts, rank, shape.inputs), (shape.experts, shape.outputs, rank)
    return (shape.inputs, rank), (rank, shape.outputs)
