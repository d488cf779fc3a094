"""Layers of a module that are recomputed for their gradient."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.nn as nn
from mlx.nn.utils import checkpoint

from purestep._core import checks
from purestep._core.tree.patterns import matched
from purestep._layers.calling import with_call

Remat: TypeAlias = str | Sequence[str] | Callable[[str], bool]
"""Patterns of the paths of layers, or a function `path -> bool`."""


def chosen(module: nn.Module, remat: Remat) -> dict[str, nn.Module]:
    """Return the layers to recompute, by path; of layers within each other, only the outermost.

    Raises:
        ValueError: if no layer matches; if the module itself does.
    """
    caller = "functional"
    named = {path: layer for path, layer in module.named_modules() if path}
    if callable(remat):
        found = {path for path in named if remat(path)}
        if not found:
            raise checks.error(caller, "remat must choose at least one layer, got none")
    else:
        patterns = (remat,) if isinstance(remat, str) else tuple(remat)
        found = matched(caller, patterns, sorted(named))
    return {
        path: named[path]
        for path in found
        if not any(path.startswith(f"{other}.") for other in found if other != path)
    }


@functools.cache
def recomputing(kind: type) -> type:
    """Return the subclass of a layer's class whose calls are recomputed for the gradient."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self, functools.partial(kind.__call__, self))(*args, **kwargs)

    return with_call(kind, call)
