"""The entropy of attention, for each head."""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, sums
from purestep._layers.observing import Statistics, Watch, alike, stacked
from purestep._measures.activations import by_path, checked_patterns
from purestep._steps.core.measuring import Measurement, Moment


def attention_entropy(
    patterns: str | Sequence[str],
    *,
    examples: int = 1,
    queries: int = 64,
    every: int = 1,
    name: str = "attention_entropy",
) -> Measurement:
    """Measure the entropy of the attention of each head, in nats, averaged over some of its queries.

    It is computed from the queries and keys that a layer passes to `mx.fast.scaled_dot_product_attention`,
    after rotary embeddings, with the scale and the mask of the call. MLX never stores the weights of
    attention; here those of a few examples are computed. 0 means that each query attends to one key, and
    `log(keys)` that it attends to all alike. A query whose keys are all masked is not counted. An attention
    sink counts as one more key.

    For each layer, `name/layer/mean` is the mean over its heads, and `name/layer/2` that of head 2.

    Args:
        patterns: paths of layers that call attention directly or within, as in `activations`. Attention
            within several matched layers counts for the innermost.
        examples: the first examples of each microbatch that are measured. Each takes
            `4 * heads * queries * keys` bytes for a short time.
        queries: at most this many queries of each example, in equal distances, the first among them.
        every: steps from one measurement to the next.
        name: the beginning of the names of the metrics.

    Raises:
        ValueError: in the first step, for a pattern that matches no layer, or no layer that calls
            `mx.fast.scaled_dot_product_attention` by that name; under `mx.vmap` within the loss function.

    >>> attention_entropy("layers.*.attention", every=10).every
    10
    """
    caller = "attention_entropy"
    chosen = checked_patterns(caller, patterns)
    examples = checks.integer(caller, "examples", examples, least=1)
    most = checks.integer(caller, "queries", queries, least=1)

    def record(queries: mx.array, keys: mx.array, scale: float, mask: Any, sinks: Any) -> Statistics:
        stride = _stride(queries.shape[2])
        if isinstance(mask, str):
            mask = _causal(queries.shape[2], keys.shape[2], stride)
        # Products, because they copy: views would keep all queries and keys in memory.
        found = {
            "queries": queries[:examples, :, ::stride].astype(mx.float32) * scale,
            "keys": keys[:examples] * 1,
        }
        given = {"mask": mask, "sinks": sinks}
        return found | {name: array for name, array in given.items() if array is not None}

    def _stride(length: int) -> int:
        return -(-length // most)

    def finish(recorded: list[Statistics]) -> list[tuple[list[int], Statistics]]:
        found = []
        for group in alike(recorded, "mask"):
            names = [name for name in recorded[group[0]] if name != "mask"]
            stack = {name: stacked([recorded[index][name] for index in group]) for name in names}
            mask = recorded[group[0]].get("mask")
            if mask is not None:
                mask = mask[:examples] if mask.ndim == 4 and mask.shape[0] > 1 else mask
                mask = mask[..., :: _stride(mask.shape[-2]), :] if mask.ndim > 1 else mask
            entropies, counted = _entropies(stack["queries"], stack["keys"], 1.0, mask, stack.get("sinks"))
            statistics = {
                "entropy": sums.total(mx.where(counted, entropies, 0.0), axis=(1, 3)),
                "queries": sums.total(counted, axis=(1, 3)),
            }
            found.append((group, statistics))
        return found

    def merge(first: Statistics, second: Statistics) -> Statistics:
        if first["entropy"].shape != second["entropy"].shape:
            raise checks.error(caller, "a layer must have the same number of heads in each call")
        return {key: first[key] + second[key] for key in first}

    def measure(moment: Moment) -> dict[str, mx.array]:
        numbers: dict[str, dict[str, mx.array]] = {}
        for paths, seen in moment.observed.items():
            heads = seen["entropy"] / seen["queries"]
            means = seen["entropy"].sum(axis=1) / seen["queries"].sum(axis=1)
            for index, path in enumerate(paths):
                own = {"mean": means[index : index + 1].reshape(())}
                for head in range(heads.shape[1]):
                    own[f"{head}"] = heads[index : index + 1, head : head + 1].reshape(())
                numbers[path] = own
        return by_path(numbers)

    return Measurement(name, measure, every, Watch(caller, chosen, "attention", record, finish, merge))


def head_entropies(
    queries: mx.array, keys: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None
) -> mx.array:
    """Return the entropy of the attention of each query, in nats.

    Args:
        queries: [batch, heads, queries, width].
        keys: [batch, key heads, keys, width]; the number of heads is a multiple of that of key heads.
        scale: the factor of the products.
        mask: as in `mx.fast.scaled_dot_product_attention`: `None`, `"causal"`, booleans that are true where a
            key counts, or numbers that are added.
        sinks: [heads]: a score for each head that takes part like that of one more key.

    Returns:
        [batch, heads, queries], float32; NaN for a query without keys.

    >>> one = mx.zeros((1, 1, 2, 4))
    >>> head_entropies(one, one, scale=1.0, mask="causal")
    array([[[0, 0.693147]]], dtype=float32)
    """
    entropies, counted = _entropies(queries, keys, scale, mask, sinks)
    return mx.where(counted, entropies, mx.nan)


def _entropies(
    queries: mx.array, keys: mx.array, scale: float, mask: Any, sinks: Any
) -> tuple[mx.array, mx.array]:
    """Return the entropy of each query, and whether it has a key: [..., heads, queries].

    Args:
        queries: [..., heads, queries, width].
        keys: [..., key heads, keys, width].
        scale: the factor of the products.
        mask: as in `head_entropies`, broadcast to [..., heads, queries, keys].
        sinks: [heads], or one such row for each index of the first axis.
    """
    queries, keys = queries.astype(mx.float32), keys.astype(mx.float32)
    *others, heads, length, width = queries.shape
    # The heads that share keys are the rows of one product.
    grouped = queries.reshape(*others, keys.shape[-3], -1, width)
    scores = scale * (grouped @ keys.swapaxes(-1, -2)).reshape(*others, heads, length, -1)
    if isinstance(mask, str):
        mask = _causal(length, scores.shape[-1])
    if mask is not None:
        scores = (
            mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask.astype(mx.float32)
        )
    highest = scores.max(axis=-1, keepdims=True)
    counted = (highest != -mx.inf).squeeze(-1)  # true for NaN: a broken score must not look like a mask
    if sinks is not None:
        ones = [1] * (len(others) - sinks.ndim + 1)
        sink = sinks.astype(mx.float32).reshape(*sinks.shape[:-1], *ones, heads, 1, 1)
        sink = mx.broadcast_to(sink, (*others, heads, length, 1))
        scores = mx.concatenate([sink, scores], axis=-1)
        highest = mx.maximum(highest, sink)
    # log(sum(exp(s))) - sum(p s): the products with -inf are 0 in the limit.
    shifted = scores - highest
    weights = mx.exp(shifted)
    total = sums.total(weights, axis=-1)
    mean = sums.total(weights * mx.maximum(shifted, -1e30), axis=-1) / total
    return mx.log(total) - mean, counted


@functools.lru_cache(maxsize=16)
def _causal(queries: int, keys: int, stride: int = 1) -> mx.array:
    """Return the mask in which the last query sees all keys; every `stride`-th row of it, from the first.

    It is kept: layers with the same mask are measured together.

    Returns:
        bool, [rows, keys]: true where a key counts.
    """
    seen = [min(max(row + keys - queries + 1, 0), keys) for row in range(0, queries, stride)]
    return mx.array([[True] * count + [False] * (keys - count) for count in seen])
