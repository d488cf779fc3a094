"""The check that a module's code has not bound `mx.checkpoint` to another name."""

from collections.abc import Iterator
from types import CodeType, FunctionType

import mlx.nn as nn

from purestep._core import checks
from purestep._core.tracing import context
from purestep._modules.walking import below, walk


def refuse_bound_checkpoint(module: nn.Module) -> None:
    """Refuse a module whose code uses a name from `from mlx.core import checkpoint`.

    `apply` replaces `mx.checkpoint` while it runs. It cannot replace a name that was imported from MLX.
    """
    for fn in _functions(module):
        if fn.__globals__.get("__name__") == context.__name__:
            continue
        names = {name for code in _codes(fn.__code__) for name in code.co_names}
        for name in names & fn.__globals__.keys():
            if context.is_original(fn.__globals__[name]):
                raise checks.error(
                    "functional",
                    f"{fn.__module__}.{fn.__qualname__} uses `{name}`, imported from mlx.core, which would "
                    "recompute with the wrong arrays; write mx.checkpoint there",
                )


def _functions(module: nn.Module) -> Iterator[FunctionType]:
    """Yield each function in the module's parts, and each method of their classes, once."""
    seen: set[int] = set()
    for _, node in walk(module):
        methods = [
            value
            for base in type(node).__mro__
            if base.__module__.partition(".")[0] not in ("mlx", "builtins")
            for value in vars(base).values()
        ]
        for value in (*methods, *(child for _, child in below(node)), node):
            if type(value) is FunctionType and id(value) not in seen:
                seen.add(id(value))
                yield value


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
