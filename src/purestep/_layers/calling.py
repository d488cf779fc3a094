"""Classes of layers whose calls do something else."""

from collections.abc import Callable
from typing import Any

import mlx.nn as nn


def with_call(kind: type, call: Callable[..., Any]) -> type:
    """Return a subclass of a layer's class with another `__call__`; `__init_subclass__` is not called.

    A class of the user may add its subclasses to a registry in `__init_subclass__`, or need arguments there.
    """
    content = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    try:
        made = type(kind.__name__, (nn.Module,), dict(content))
        made.__bases__ = (kind,)
    except TypeError:  # a class with slots
        made = type(kind.__name__, (kind,), content)
    return made
