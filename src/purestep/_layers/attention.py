"""Attention of ordinary operations: one that can be differentiated again, and one that is fast on a CPU.

On CUDA, MLX's fused attention has a fused gradient, and that gradient has none. On a CPU, MLX's attention
consists of ordinary operations already, but its exponentials and its mask are slow.
"""

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._layers import blocks, exponential


class _Open(threading.local):
    def __init__(self) -> None:
        self.twice = 0
        self.fast = 0


_open = _Open()
_original: Any = mx.fast.scaled_dot_product_attention
_lock = threading.Lock()
_installed = 0


class _Block:
    """A block in which attention is replaced in this thread; `kind` is an attribute of `_open`."""

    def __init__(self, kind: str, here: bool):
        self._kind, self._here = kind, here

    def __enter__(self) -> None:
        if self._here:
            _install(1)
            setattr(_open, self._kind, getattr(_open, self._kind) + 1)

    def __exit__(self, *error: object) -> None:
        if self._here:
            setattr(_open, self._kind, getattr(_open, self._kind) - 1)
            _install(-1)


def differentiable_twice() -> _Block:
    """Let MLX's fused attention be `attention` within the `with` block, in this thread, on a GPU."""
    return _Block("twice", hardware.on_gpu())  # a CPU has no fused attention


def fast_on_cpu() -> _Block:
    """Let MLX's fused attention be that of this module within the `with` block, in this thread, on a CPU."""
    return _Block("fast", not hardware.on_gpu())


def _dispatched(*args: Any, **kwargs: Any) -> Any:
    if _open.twice and kwargs.get("sinks") is None:
        return attention(*args, **kwargs)
    if _open.fast and _serves(*args, **kwargs):
        return _masked_by_sums(*args, **kwargs)
    return _original(*args, **kwargs)


def _install(change: int) -> None:
    """Replace the attention while any thread is in a block; blocks of several threads may overlap."""
    global _installed, _original
    with _lock:
        before, _installed = _installed, _installed + change
        now = mx.fast.scaled_dot_product_attention
        # Layers that are recorded may replace the attention within such a block: theirs calls this one.
        if not before and now is not _dispatched:
            _original, mx.fast.scaled_dot_product_attention = now, _dispatched
        elif not _installed and now is _dispatched:
            mx.fast.scaled_dot_product_attention = _original


def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any) -> mx.array:
    """Return `softmax(scale q k + mask) v`, as `mx.fast.scaled_dot_product_attention` without sinks.

    Args:
        q: [batch, heads, queries, width].
        k: [batch, groups, keys, width]; `groups` divides `heads`.
        v: [batch, groups, keys, any width].
        scale: of the products.
        mask: `None`, `"causal"`, or an array that broadcasts to [batch, heads, queries, keys]: Boolean, true
            for what is seen, or added to the products.
    """
    queries, keys = q.shape[2], k.shape[2]
    if isinstance(mask, str):
        mask = mx.tri(queries, keys, keys - queries, dtype=mx.float32).astype(mx.bool_)

    def weights(scores: mx.array) -> mx.array:
        return mx.softmax(_masked(scores, mask, -mx.inf), axis=-1, precise=True)

    return _mixed(q, k, v, scale, weights)


def _serves(q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, **options: Any) -> bool:
    """Tell whether `_masked_by_sums` has these arguments; MLX refuses wrong ones."""
    arrays = (q, k, v) if mask is None or isinstance(mask, str) else (q, k, v, mask)
    if hardware.on_gpu() or any(not (value is None or value is False) for value in options.values()):
        return False
    if not all(isinstance(array, mx.array) for array in arrays):
        return False
    if not all(array.ndim == 4 and array.dtype == mx.float32 for array in (q, k, v)):
        return False
    batch, heads, queries, width = q.shape
    if k.shape != (batch, k.shape[1], k.shape[2], width) or v.shape[:3] != k.shape[:3]:
        return False
    if not k.shape[1] or heads % k.shape[1] or batch * heads * queries * k.shape[2] < exponential.SMALL:
        return False
    if mask is None or isinstance(mask, str):
        return mask in (None, "causal")
    shape = (batch, heads, queries, k.shape[2])
    return (
        mask.dtype in (mx.bool_, mx.float32)
        and mask.ndim <= 4
        and all(have in (1, want) for have, want in zip(mask.shape[::-1], shape[::-1], strict=False))
    )


def _masked_by_sums(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any
) -> mx.array:
    """Return attention with MLX's values: a hidden key has the most negative score."""
    queries, keys, lowest = q.shape[2], k.shape[2], mx.finfo(mx.float32).min
    if mask == "causal" and keys >= queries:
        # Every query sees a key. A sum hides the others too, and takes a tenth of the time of `mx.where`.
        mask = mx.triu(mx.full((queries, keys), lowest), keys - queries + 1)
        mask = mask.reshape(1, queries, keys)  # or MLX would compute it again in the sum, for every head
    elif isinstance(mask, str):
        mask = mx.tri(queries, keys, keys - queries, dtype=mx.float32).astype(mx.bool_)

    def weights(scores: mx.array) -> mx.array:
        return exponential.softmax(_masked(scores, mask, lowest))

    batch, heads = q.shape[:2]
    rows, members = batch * k.shape[1], heads // k.shape[1]
    length = blocks.length(rows, members * queries * keys)
    if length >= rows or (mask is not None and mask.size != queries * keys):
        return _mixed(q, k, v, scale, weights)
    # One group of heads of one sequence is a row. The scores of a block are freed before those of the next.
    mask = mask if mask is None else mask.reshape(1, queries, keys)

    def parts(x: mx.array, count: int) -> list[mx.array]:
        return blocks.split(x.reshape(rows, count, *x.shape[2:]), length)

    some = zip(parts(q, members), parts(k, 1), parts(v, 1), strict=True)
    found = [_mixed(one, its_k, its_v, scale, weights) for one, its_k, its_v in some]
    return mx.concatenate(found).reshape(batch, heads, queries, v.shape[-1])


def _masked(scores: mx.array, mask: mx.array | None, lowest: float) -> mx.array:
    """Return scores [batch, groups, heads / groups, queries, keys] with a mask."""
    if mask is None:
        return scores
    batch, groups, members, queries, keys = scores.shape
    if mask.ndim > 3 or (mask.ndim == 3 and mask.shape[0] > 1):
        mask = mx.broadcast_to(mask, (batch, groups * members, queries, keys)).reshape(scores.shape)
    return mx.where(mask, scores, lowest) if mask.dtype == mx.bool_ else scores + mask


def _mixed(
    q: mx.array, k: mx.array, v: mx.array, scale: float, weights: Callable[[mx.array], mx.array]
) -> mx.array:
    batch, heads, queries, width = q.shape
    groups = k.shape[1]
    scores = (q.reshape(batch, groups, heads // groups, queries, width) * scale) @ k[:, :, None].swapaxes(
        -1, -2
    )
    mixed = weights(scores).astype(v.dtype) @ v[:, :, None]
    return mixed.reshape(batch, heads, queries, v.shape[-1])
