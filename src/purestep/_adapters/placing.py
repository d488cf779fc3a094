"""Adapters in copies of a module: placed by patterns, listed, merged and removed."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from purestep._adapters.layers import EMBEDDING, LINEAR, Adapted, adapted, merged
from purestep._core import checks, rng
from purestep._core.tree.patterns import matched
from purestep._modules.copying import UncopyableError, copied

Module = TypeVar("Module", bound=nn.Module)


class AdapterRow(NamedTuple):
    """One adapted layer.

    Attributes:
        path: of the layer, such as `layers.0.self_attn.q_proj`.
        kind: `lora` or `dora`.
        rank: of the update.
        parameters: trained numbers.
    """

    path: str
    kind: str
    rank: int
    parameters: int


class AdapterReport(NamedTuple):
    """What has an adapter.

    Attributes:
        rows: the adapted layers.
        trained: trained numbers of the module.
        frozen: its other numbers; for quantized weights, the stored integers.
    """

    rows: tuple[AdapterRow, ...]
    trained: int
    frozen: int

    def __str__(self) -> str:
        width = max((len(row.path) for row in self.rows), default=0)
        lines = [
            f"{r.path:<{width}}  {r.kind}  rank {r.rank}  {r.parameters:,} parameters" for r in self.rows
        ]
        return "\n".join([*lines, f"{self.trained:,} trained, {self.frozen:,} frozen"])


def lora(
    module: Module,
    patterns: str | Sequence[str],
    *,
    rank: int,
    key: mx.array,
    alpha: float | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    rank_stabilized: bool = False,
) -> Module:
    """Return a copy of a module with low-rank updates on the layers that match; all else is frozen.

    A layer gives `base(x) + scale * dropout(x) @ lora_a @ lora_b`. At the start `lora_b` is zero, so the copy
    computes what the module does. The arrays of the frozen layers are shared, not copied. `ps.functional` of
    the copy has only `lora_a` and `lora_b` in `params`. They are float32; the update is computed in the dtype
    of the activations, and the output keeps its dtype.

    Args:
        module: left unchanged.
        patterns: of the paths of layers, such as `"*.self_attn.q_proj"`; `*` is any text. Layers may be
            `nn.Linear`, `nn.QuantizedLinear`, `nn.Embedding` or `nn.QuantizedEmbedding`.
        rank: at least 1, and at most the smaller size of each layer.
        key: for the first values of `lora_a`, uniform in +-1 / sqrt(inputs).
        alpha: the update is scaled by `alpha / rank`, or by `alpha / sqrt(rank)` with `rank_stabilized`.
        scale: the factor itself, in place of `alpha`, as in mlx-lm.
        dropout: rate in [0, 1) of the update's input. It draws from the key of `apply(rng=)`.
        rank_stabilized: arXiv:2312.03732.

    Raises:
        ValueError: for a pattern that matches nothing; for a layer that is of another type, smaller than the
            rank, or already adapted; unless one of `alpha` and `scale` is given.

    Reference: Hu et al., arXiv:2106.09685.

    >>> with rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> print(report(lora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1))))
    layers.0  lora  rank 2  32 parameters
    32 trained, 90 frozen
    """
    options = _options("lora", rank, alpha, scale, dropout, rank_stabilized)
    return placed("lora", module, patterns, "lora", options, key)


def dora(
    module: Module,
    patterns: str | Sequence[str],
    *,
    rank: int,
    key: mx.array,
    alpha: float | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Module:
    """Return a copy of a module with weight-decomposed low-rank updates; all else is frozen.

    As `lora`, and each row of a weight also has a trained length `m`: the weight is
    `m * (W + update) / norm(W + update)`. No gradient flows through the norm. Quantized weights are
    dequantized in every forward pass.

    Args:
        module: left unchanged.
        patterns: of the paths of layers, which must be `nn.Linear` or `nn.QuantizedLinear`.
        rank: as in `lora`.
        key: as in `lora`.
        alpha: as in `lora`.
        scale: as in `lora`.
        dropout: as in `lora`.

    Raises:
        ValueError: as `lora`.

    Reference: Liu et al., arXiv:2402.09353.

    >>> with rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> report(dora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1))).trained
    40
    """
    return placed("dora", module, patterns, "dora", _options("dora", rank, alpha, scale, dropout, False), key)


def report(module: nn.Module) -> AdapterReport:
    """Return which layers of a module have an adapter, and how many numbers are trained.

    >>> report(nn.Linear(2, 2, bias=False))
    AdapterReport(rows=(), trained=4, frozen=0)
    """
    rows = tuple(
        AdapterRow(path, layer.kind, layer.lora_b.shape[0], _size(layer.trainable_parameters()))
        for path, layer in sorted(adapters_of(module).items())
    )
    trained = _size(module.trainable_parameters())
    return AdapterReport(rows, trained, _size(module.parameters()) - trained)


def merge(module: Module) -> Module:
    """Return a copy of a module with the updates in its weights, in plain layers without adapters.

    Quantized layers are quantized again with the same settings, which rounds. The copy is frozen as far as
    the module was; `unfreeze` it to train it further.

    Raises:
        ValueError: if the module has no adapters.

    >>> with rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8))
    >>> type(merge(lora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1))).layers[0]).__name__
    'Linear'
    """
    return _replaced("merge", module, merged)


def remove(module: Module) -> Module:
    """Return a copy of a module without its adapters: the layers as they were before.

    Raises:
        ValueError: if the module has no adapters.

    >>> with rng.scope(mx.random.key(0)):
    ...     model = nn.Sequential(nn.Linear(8, 8))
    >>> report(remove(lora(model, "layers.0", rank=2, alpha=4, key=mx.random.key(1)))).rows
    ()
    """
    return _replaced("remove", module, lambda layer: layer.base)


def placed(
    caller: str,
    module: Module,
    patterns: str | Sequence[str],
    kind: str,
    options: tuple[int, float, float],
    key: mx.array,
) -> Module:
    """Return a copy of a module with adapters of one kind on the layers that match."""
    rng.check_key(caller, key)
    twin = _copy(caller, module)
    named = {path: layer for path, layer in twin.named_modules() if path}
    texts = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    candidates = [path for path, layer in named.items() if type(layer) in (*LINEAR, *EMBEDDING)]
    every = sorted(named) if not candidates else sorted({*candidates, *_exact(texts, named)})
    found = sorted(matched(caller, texts, every))
    if not found:
        raise checks.error(caller, "patterns must hold at least one pattern, got none")
    new = [
        (path, adapted(caller, path, named[path], kind, *options, rng.fold_in(key, number)))
        for number, path in enumerate(found)
    ]
    twin.freeze()
    twin.update_modules(tree_unflatten(new))
    for _, layer in new:
        layer.unfreeze()
        layer.base.freeze()
    return twin


def _exact(texts: Sequence[str], named: dict[str, Any]) -> list[str]:
    """Return the layers that are named in full, also those that cannot have an adapter."""
    return [text for text in texts if text in named]


def _options(
    caller: str, rank: int, alpha: Any, scale: Any, dropout: float, rank_stabilized: bool
) -> tuple[int, float, float]:
    rank = checks.integer(caller, "rank", rank, least=1)
    dropout = float(checks.number(caller, "dropout", dropout, least=0))
    if not dropout < 1:
        raise checks.error(caller, f"dropout must be less than 1, got {dropout}")
    if (alpha is None) == (scale is None):
        raise checks.error(caller, "exactly one of alpha and scale must be given")
    if scale is None:
        scale = checks.number(caller, "alpha", alpha, above=0) / (
            math.sqrt(rank) if rank_stabilized else rank
        )
    return rank, float(checks.number(caller, "scale", scale, above=0)), dropout


def adapters_of(module: nn.Module) -> dict[str, Adapted]:
    """Return the adapted layers of a module by path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, Adapted)}


def _replaced(caller: str, module: Module, plain: Callable[[Adapted], nn.Module]) -> Module:
    twin = _copy(caller, module)
    found = adapters_of(twin)
    if not found:
        raise checks.error(caller, "module must have adapters, got none")
    if "" in found:
        raise checks.error(caller, "module must contain the adapted layers, got one of them")
    twin.update_modules(tree_unflatten([(path, plain(layer)) for path, layer in found.items()]))
    return twin


def _copy(caller: str, module: Module) -> Module:
    """Return a copy of a module that shares its arrays."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: module must be an mlx.nn.Module, got {type(module).__name__}")
    try:
        return copied(module, {})[id(module)]
    except UncopyableError as error:
        path, kind = error.args
        raise checks.error(caller, f"module must be copyable, but {path} is a {kind}") from None


def _size(parameters: Any) -> int:
    return sum(array.size for _, array in tree_flatten(parameters))  # type: ignore[str-unpack]
