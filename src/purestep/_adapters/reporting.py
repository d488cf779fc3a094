"""A report of the adapters in a module."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import count, is_quantized
from purestep._adapters.selecting import adapters_of, layers_of
from purestep._core import tree


class AdapterRow(NamedTuple):
    """One adapted layer.

    Attributes:
        path: of the layer, such as `layers.0.self_attn.q_proj`.
        kind: `lora` or `dora`.
        rank: of the update.
        parameters: the number of trained parameters.
        scale: the factor of the update.
        layer: `linear`, `embedding` or `experts`, after `quantized ` if the layer is quantized.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    >>> adapters.report(adapters.lora(model, "layers.1", rank=2, alpha=4, key=mx.random.key(0))).rows[0]
    AdapterRow(path='layers.1', kind='lora', rank=2, parameters=16, scale=2.0, layer='linear')
    """

    path: str
    kind: str
    rank: int
    parameters: int
    scale: float
    layer: str


class AdapterReport(NamedTuple):
    """The adapters of a module; `str` gives a table.

    Attributes:
        rows: the adapted layers, in the module's order.
        trained: the number of parameters of the module that are trained.
        frozen: the number of its other parameters; quantized weights are counted as before quantization.

    >>> print(report(nn.Linear(8, 4)))
    36 trained, 0 frozen
    """

    rows: tuple[AdapterRow, ...]
    trained: int
    frozen: int

    def __str__(self) -> str:
        width = max((len(row.path) for row in self.rows), default=0)
        lines = [
            f"{row.path:<{width}}  {row.kind}  rank {row.rank}  {row.parameters:,} parameters"
            for row in self.rows
        ]
        return "\n".join([*lines, f"{self.trained:,} trained, {self.frozen:,} frozen"])


def report(module: nn.Module) -> AdapterReport:
    """Return the adapters of a module, and the numbers of its trained and frozen parameters.

    Args:
        module: any module, with or without adapters.

    Returns:
        A report; print it for a table.

    Raises:
        TypeError: if `module` is not a module.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> print(report(adapters.lora(model, "*", rank=2, alpha=4, key=mx.random.key(0))))
    layers.0  lora  rank 2  24 parameters
    24 trained, 36 frozen
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"report: module must be an mlx.nn.Module, got {type(module).__name__}")
    found = tuple(
        AdapterRow(
            path,
            layer.method,
            layer.rank,
            sum(layer[name].size for name in layer.trained),
            layer.scale,
            ("quantized " if is_quantized(layer.base) else "") + layer.kind,
        )
        for path, layer in adapters_of(module).items()
    )
    return AdapterReport(found, *_totals(module))


def _totals(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of trained and of frozen parameters; a tied array counts once."""
    trained = {id(leaf): leaf.size for leaf in tree.leaves(module.trainable_parameters())}
    frozen: dict[int, int] = {}
    for layer in layers_of(module).values():
        quantized = is_quantized(layer)
        for name, leaf in layer.items():
            if not isinstance(leaf, mx.array) or name.startswith("_") or id(leaf) in trained:
                continue
            if not (quantized and name in ("scales", "biases", "global_scale")):
                frozen[id(leaf)] = count(layer) if quantized and name == "weight" else leaf.size
    return sum(trained.values()), sum(frozen.values())
