"""MLX's operations that it cannot write to a file, or whose gradients it cannot, by others that it can."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.tracing import custom
from purestep._core.tracing.replacing import Replacement

_attention: Any = mx.fast.scaled_dot_product_attention
_cross_entropy: Any = mx.fast.cross_entropy
_gather_mm: Any = mx.gather_mm
_contiguous: Any = mx.contiguous


@contextmanager
def replaced() -> Iterator[None]:
    """Replace the operations within the block, where a step is exported."""
    with _always.installed():
        if not hardware.on_gpu():
            yield
            return
        with _fast.installed():
            yield


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Any = None,
    sinks: Any = None,
    **options: Any,
) -> mx.array:
    """Return attention; its gradient is made of products and a softmax."""
    if not custom.is_exporting():
        return _attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    given = {"mask": mask, "sinks": sinks}
    names = [name for name, value in given.items() if isinstance(value, mx.array)]

    def forward(q: mx.array, k: mx.array, v: mx.array, *extra: mx.array) -> mx.array:
        return _attention(
            q, k, v, scale=scale, **{**given, **dict(zip(names, extra, strict=True))}, **options
        )

    function: Any = custom.custom_function(forward)

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        def again(q: mx.array, k: mx.array, v: mx.array, *extra: mx.array) -> mx.array:
            return _products(q, k, v, scale, **{**given, **dict(zip(names, extra, strict=True))})

        return tuple(mx.vjp(again, list(primals), [cotangent])[1])

    return function(q, k, v, *(given[name] for name in names))


def cross_entropy(logits: mx.array, targets: mx.array, **options: Any) -> mx.array:
    """Return the losses from ordinary operations."""
    if not custom.is_exporting() or options:
        return _cross_entropy(logits, targets, **options)
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[..., None].astype(mx.int32), axis=-1)[..., 0]
    return mx.logsumexp(logits, axis=-1) - chosen


def gather_mm(
    a: mx.array, b: mx.array, *indices: Any, sorted_indices: bool = False, **options: Any
) -> mx.array:
    """Return the products; MLX can write their gradient only where the indices are not said to be sorted."""
    own = sorted_indices and not custom.is_exporting()
    return _gather_mm(a, b, *indices, sorted_indices=own, **options)


def contiguous(array: mx.array, *arguments: Any, **options: Any) -> mx.array:
    """Return the array: the order in memory of what the step computes is MLX's choice in the file."""
    return array if custom.is_exporting() else _contiguous(array, *arguments, **options)


def _products(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any, sinks: mx.array | None
) -> mx.array:
    batch, heads, length, _ = q.shape
    groups, keys = k.shape[1], k.shape[2]
    q = (q * scale).reshape(batch, groups, heads // groups, length, -1)
    scores = q @ k[:, :, None].swapaxes(-1, -2)
    if isinstance(mask, str):  # causal
        mask = mx.arange(keys - length, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        mask = mx.broadcast_to(mask, (batch, heads, length, keys)).reshape(scores.shape)
        least = mx.array(mx.finfo(scores.dtype).min, scores.dtype)
        scores = mx.where(mask, scores, least) if mask.dtype == mx.bool_ else scores + mask
    if sinks is not None:
        column = mx.broadcast_to(sinks.reshape(groups, -1, 1, 1), (*scores.shape[:-1], 1))
        scores = mx.concatenate([column.astype(scores.dtype), scores], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = (weights if sinks is None else weights[..., 1:]) @ v[:, :, None]
    return out.reshape(batch, heads, length, -1)


_fast = Replacement(mx.fast, scaled_dot_product_attention=attention, cross_entropy=cross_entropy)
_always = Replacement(mx, gather_mm=gather_mm, contiguous=contiguous)
