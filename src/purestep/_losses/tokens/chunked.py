"""Cross entropy of an output projection whose logits are never whole."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.tokens import projection

_WHERE = "linear_cross_entropy"


def linear_cross_entropy(
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    *,
    bias: mx.array | None = None,
    chunk_size: int = 2048,
    weights: mx.array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> Mean:
    """Return the `cross_entropy` of `hidden @ weight.T + bias`, some tokens at a time.

    With `x` a token's logits, capped to `cap tanh(x / cap)` if a soft cap is given, the loss is

        (1 - s) (logsumexp(x) - x[t]) + s (logsumexp(x) - mean(x)) + z logsumexp(x)^2

    for target `t`, smoothing `s` and z-loss `z`. The logits are those of `chunk_size` tokens at a time, in
    the dtype of `hidden`, and the loss of each chunk is computed in float32. When a gradient of
    `hidden` or `weight` is on its way, it is made together with the loss, chunk by chunk, and only scaled
    afterwards: three matrix products, as the plain loss has, and memory for one chunk.

    Memory is bought with time. On an NVIDIA H200 (CUDA, MLX 0.32.4), 8192 tokens x 768 features x 50304
    classes in bfloat16, loss and both gradients, compiled, relative to the plain loss, with the peak over
    inputs and gradients:

        chunk_size    memory      time
              1024      0.24       2.3
              2048      0.37       1.6
              4096      0.61       1.3

    On a GPU each chunk is sent off when the one before is done; else CUDA would give all of them memory of
    their own (at 2048: 1.19, time 1.08). What waits is the evaluation of the graph, `mx.async_eval` too, and
    not Python: building a step, and tracing it in `mx.compile`, stay free of it. Metal is untested.

    On a CPU nothing waits, and MLX holds some ten results of the size of a chunk's logits. With 2048 tokens x
    64 features x 8192 classes in float32, compiled, memory is 0.29 of the plain loss's at 1/16 of the tokens
    a chunk, 0.56 at 1/8 and 1.10 at 1/4; time is 0.8 to 0.9 (`python -m benchmarks linear_cross_entropy`).

    - A target out of range that is not ignored makes the loss and its gradients NaN; so does -100, unless it
      is `ignore_index`.
    - A token of zero weight, ignored or masked, has no part in loss or gradients, and gets a gradient of
      exactly zero; its row of `hidden` may hold NaN.
    - The gradient of a gradient is exact too, but holds all the logits.
    - Gradients of `weight` are added up in its own dtype, rounded once a chunk (in bfloat16 on the H200, of
      their norm away from float32: 2.4e-3 at 2048, the plain loss's 1.7e-3); float16 in float32, but the sum
      over the tokens of one chunk, before any division, has to stay within 65504.
    - Under `mx.vmap` everything has to be one chunk: what orders the chunks, `mx.depends`, cannot be mapped.

    Args:
        hidden: floating [..., features].
        weight: [classes, features], of the dtype of `hidden`; laid out as that of `mlx.nn.Linear`.
        targets: integer [...], in [0, classes) or equal to `ignore_index`.
        bias: [classes].
        chunk_size: tokens at a time, at least 1. Memory grows with it, time falls. No more tokens than this
            in all are one chunk, as in the plain loss.
        weights: [...] or a shape that broadcasts to it: what each target counts; zero leaves it out.
        ignore_index: targets of this value are left out; may lie outside [0, classes).
        label_smoothing: in [0, 1), the probability spread evenly over all classes.
        z_loss: at least 0, what holds the logits near their normalized values (1e-4 in PaLM).
        soft_cap: greater than 0, what no logit's size exceeds (30 in Gemma 2).

    Returns:
        `Mean(total, weight)`, as `cross_entropy` does.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the dtypes do not.

    Reference: the gradient in the forward pass, Hsu et al., arXiv:2410.10989; cross entropy without the
    logits, Wijmans et al., arXiv:2411.09009; soft cap, arXiv:2408.00118.

    >>> hidden, weight = mx.ones((3, 2)), mx.zeros((4, 2))
    >>> linear_cross_entropy(hidden, weight, mx.array([1, -100, 2]), ignore_index=-100, chunk_size=2)
    Mean(total=array(2.77259, dtype=float32), weight=array(2, dtype=float32))
    """
    label_smoothing, z_loss = checks.python_number(label_smoothing), checks.python_number(z_loss)
    chunk_size, soft_cap = checks.python_number(chunk_size), checks.python_number(soft_cap)
    _check(hidden, weight, targets, bias, chunk_size, label_smoothing, z_loss, soft_cap)
    counts = reduce.counts(_WHERE, weights, targets.shape, "targets'")
    targets, classes = reduce.signed(targets), weight.shape[0]
    if ignore_index is not None:
        kept = targets != ignore_index
        counts = kept.astype(mx.float32) if counts is None else mx.where(kept, counts, 0.0)
    valid = mx.logical_and(targets >= 0, targets < classes)
    if counts is not None:
        valid = mx.logical_or(valid, counts == 0)
    # Multiplied, not selected: so the gradient of a bad target is NaN as well; a selection gives zero.
    factors = mx.where(valid, 1.0, mx.nan)
    if counts is None:
        weight_sum = mx.array(float(targets.size))
    else:
        factors, weight_sum = factors * counts, sums.total(counts)
    if targets.size == 0:
        return Mean(sums.total(hidden), weight_sum)
    total = projection.summed(
        projection.Form(label_smoothing, z_loss, soft_cap),
        chunk_size,
        reduce.keep(counts, hidden).reshape(-1, hidden.shape[-1]),
        weight,
        factors.reshape(-1),
        mx.clip(targets, 0, classes - 1).astype(mx.int32).reshape(-1),
        *(() if bias is None else (bias,)),
    )
    return Mean(total, weight_sum)


def _check(
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    bias: mx.array | None,
    chunk_size: int,
    label_smoothing: float,
    z_loss: float,
    soft_cap: float | None,
) -> None:
    reduce.floating(_WHERE, "hidden", hidden)
    reduce.floating(_WHERE, "weight", weight)
    reduce.integers(_WHERE, "targets", targets)
    reduce.labelled(_WHERE, hidden, targets, ("hidden", "targets"))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise checks.error(
            _WHERE, f"weight must be [classes, {hidden.shape[-1]}] as hidden has features, got {weight.shape}"
        )
    for name, array, shape in (("weight", weight, weight.shape), ("bias", bias, weight.shape[:1])):
        if array is None:
            continue
        reduce.floating(_WHERE, name, array)
        if array.dtype != hidden.dtype:
            raise TypeError(f"{_WHERE}: {name} must have hidden's dtype {hidden.dtype}, got {array.dtype}")
        if array.shape != shape:
            raise checks.error(_WHERE, f"{name} must be {shape}, one for each class, got {array.shape}")
    chunk_size = checks.integer(_WHERE, "chunk_size", chunk_size, least=1)
    label_smoothing = checks.number(_WHERE, "label_smoothing", label_smoothing, least=0, below=1)
    z_loss = checks.number(_WHERE, "z_loss", z_loss, least=0)
    if soft_cap is not None:
        soft_cap = checks.number(_WHERE, "soft_cap", soft_cap, above=0)
