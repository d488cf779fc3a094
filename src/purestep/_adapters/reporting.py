"""A report of the adapters in a module."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep._adapters.kinds import count, is_quantized
from purestep._adapters.selecting import adapters_of, layers_of
from purestep._core import tree


class AdaptedLayer(NamedTuple):
    """One layer with an adapter.

    Attributes:
        path: the path of the layer.
        kind: `"linear"`, `"embedding"` or `"experts"`, after `"quantized "` if the base is quantized.
        method: `"lora"` or `"dora"`.
        rank: of the update.
        scale: the factor of the update.
        parameters: the number of trained parameters.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    >>> adapted = adapters.lora(model, "layers.1", rank=2, key=mx.random.key(0))
    >>> adapters.report(adapted).layers[0].path
    'layers.1'
    """

    path: str
    kind: str
    method: str
    rank: int
    scale: float
    parameters: int


class Report(NamedTuple):
    """The adapters of a module; `str` gives a table.

    Attributes:
        layers: the layers with adapters, in the module's order.
        trained: the number of parameters of the module that are trained.
        frozen: the number of its other parameters; quantized weights are counted as before quantization.

    >>> print(report(nn.Linear(8, 4)))
    no adapters
    36 parameters trained (100%), 0 frozen
    """

    layers: tuple[AdaptedLayer, ...]
    trained: int
    frozen: int

    def __str__(self) -> str:
        rows = [("path", "kind", "method", "rank", "scale", "parameters")]
        rows += [
            (each.path, each.kind, each.method, f"{each.rank}", f"{each.scale:g}", f"{each.parameters:,}")
            for each in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = [
            "  ".join(
                cell.ljust(width) if index < 3 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        share = 100 * self.trained / max(1, self.trained + self.frozen)
        last = f"{self.trained:,} parameters trained ({share:.3g}%), {self.frozen:,} frozen"
        return "\n".join([*(texts if self.layers else ["no adapters"]), last])


def report(module: nn.Module) -> Report:
    """Return the adapters of a module, and the numbers of its trained and frozen parameters.

    Args:
        module: any module, with or without adapters.

    Returns:
        A report; print it for a table.

    Raises:
        TypeError: if `module` is not a module.

    >>> from purestep import adapters
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> print(report(adapters.lora(model, "*", rank=2, key=mx.random.key(0))))
    path      kind    method  rank  scale  parameters
    layers.0  linear  lora       2      1          24
    24 parameters trained (40%), 36 frozen
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"adapters.report: module must be an mlx.nn.Module, got {type(module).__name__}")
    found = tuple(
        AdaptedLayer(
            path,
            ("quantized " if is_quantized(layer.base) else "") + layer.kind,
            layer.method,
            layer.rank,
            layer.scale,
            sum(layer[name].size for name in layer.trained),
        )
        for path, layer in adapters_of(module).items()
    )
    return Report(found, *totals(module))


def totals(module: nn.Module) -> tuple[int, int]:
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
