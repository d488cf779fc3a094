"""MLX's fused operations on a GPU that it cannot describe, or whose gradients it cannot describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.tracing import custom, graph
from purestep._core.tracing.replacing import Replacement

_attention: Any = mx.fast.scaled_dot_product_attention
_cross_entropy: Any = mx.fast.cross_entropy


@contextmanager
def described() -> Iterator[None]:
    """Replace the operations within the block, for the graph that is being captured."""
    if not hardware.on_gpu():
        yield
        return
    with _described.installed():
        yield


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, sinks: Any = None, **options: Any
) -> mx.array:
    """Return attention; its gradient is one operation where MLX has a kernel for it."""
    if not custom.is_capturing():
        return _attention(q, k, v, mask=mask, sinks=sinks, **options)
    given = {"mask": mask, "sinks": sinks}
    names = [name for name, value in given.items() if isinstance(value, mx.array)]
    extra = [given[name] for name in names]

    def forward(q: mx.array, k: mx.array, v: mx.array, *extra: mx.array) -> mx.array:
        still = {name: mx.stop_gradient(array) for name, array in zip(names, extra, strict=True)}
        return _attention(q, k, v, **{**given, **still}, **options)

    like = [mx.zeros(array.shape, array.dtype) for array in (q, k, v)]
    shapes = [(array.shape, array.dtype) for array in extra]
    if "ScaledDotProductAttention" not in graph.primitives(
        forward(*like, *(mx.zeros(*each) for each in shapes))
    ):
        return _attention(q, k, v, **given, **options)
    function: Any = custom.custom_function(forward)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        read = [*primals, output, cotangent]
        shapes = [(array.shape, array.dtype) for array in primals[:3]]
        found = custom.opaque("ScaledDotProductAttentionVJP", read, shapes)
        return *found, *(mx.zeros_like(array) for array in primals[3:])

    return function(q, k, v, *extra)


def cross_entropy(logits: mx.array, targets: mx.array, **options: Any) -> mx.array:
    """Return the losses; the operation and its gradient are one operation each."""
    if not custom.is_capturing():
        return _cross_entropy(logits, targets, **options)

    def forward(logits: mx.array, targets: mx.array) -> mx.array:
        return custom.opaque("CrossEntropy", [logits, targets], [(targets.shape, mx.float32)])[0]

    function: Any = custom.custom_function(forward)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        logits, targets = primals
        read = [logits, targets, cotangent]
        (found,) = custom.opaque("CrossEntropyVJP", read, [(logits.shape, logits.dtype)])
        return found, mx.zeros_like(targets)

    return function(logits, targets)


_described = Replacement(mx.fast, scaled_dot_product_attention=attention, cross_entropy=cross_entropy)
