"""Cross entropy of an output projection, in chunks: the full logits never exist."""

import mlx.core as mx

from purestep._core import checks, sums
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting
from purestep._losses.core.kernel import Form
from purestep._losses.tokens import projection

_CALLER = "linear_cross_entropy"


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
    """Return the `cross_entropy` of `hidden @ weight.T + bias`, one chunk of tokens at a time.

    Let `x` be a token's logits, after `cap tanh(x / cap)` if a soft cap is given. The loss of target `t`,
    with smoothing `s` and z-loss `z`, is

        (1 - s) (logsumexp(x) - x[t]) + s (logsumexp(x) - mean(x)) + z logsumexp(x)^2

    Each chunk has the logits of `chunk_size` tokens, in the dtype of `hidden`; its loss is computed in
    float32. If a gradient of `hidden` or `weight` is needed, it is computed together with the loss of each
    chunk and scaled afterwards. This takes three matrix products, as the plain loss does, and the memory of
    one chunk, on a GPU of about two.

    Chunks save memory and cost time. The table shows memory and time relative to the plain loss
    (`mx.fast.cross_entropy`), for the loss and both gradients, in a step compiled by `ps.compiled`, on an
    NVIDIA H100 (CUDA, MLX 0.32.4) with 8192 tokens, 768 features and 50304 classes in bfloat16. Memory is the
    peak above inputs and gradients.

        chunk_size    memory      time
              1024      0.30       1.2
              1366      0.35       1.14
              2048      0.43       1.06
              4096      0.62       0.98
              8192      0.56       0.94

    There, in a step that `ps.compiled` traces, one kernel computes the losses of a chunk and their gradients,
    which take the place of the logits in memory (without `bias`). Where a row of logits has at most 112 KiB,
    it takes 0.59 ms for all tokens; MLX's kernels take 0.88 ms.

    The host must not submit all chunks at once, for CUDA would allocate memory for each of them. So it is
    about two chunks ahead of the GPU, and the evaluation of the graph waits in between, also in
    `mx.async_eval`; building a step and tracing it do not wait. With two chunks, no memory is saved. A packed
    step of GPT-2 with 8 x 1024 tokens takes 18.4 to 19.4 ms and 7.4 GB with one chunk, and 20.8 ms and 6.4 GB
    with a chunk_size of 1024, on H100s whose hosts differ. In a step that is not compiled, and for weights of
    less than some 2 million elements (9 million after `configure_cuda(group_elements=2**32)`), the host waits
    by an operation on the CPU, which costs a large step about 5 ms. Metal is untested.

    On a CPU nothing waits, and MLX holds about ten arrays of the size of a chunk's logits. For 2048 tokens
    x 64 features x 8192 classes in float32, compiled, relative memory is 0.29 with 1/16 of the tokens in a
    chunk, 0.56 with 1/8 and 1.10 with 1/4; time is 0.8 to 0.9 (`python -m benchmarks loss`).

    - A target out of range that is not ignored makes the loss and its gradients NaN; so does -100, unless
      it is `ignore_index`.
    - A token of zero weight, ignored or masked, is skipped and gets a gradient of exactly zero. Its row of
      `hidden` may be NaN.
    - The second derivative is exact, but it holds all the logits.
    - Gradients of `weight` are summed over chunks in the dtype of `weight`. In bfloat16 on the H200, their
      relative error is 2.4e-3 with a chunk_size of 2048, and 1.7e-3 for the plain loss. float16 gradients are
      summed in float32, but the sum over the tokens of one chunk must stay within 65504.
    - Under `mx.vmap` all tokens must be one chunk: `mx.depends`, which orders the chunks, cannot be mapped.

    Args:
        hidden: floating [..., features].
        weight: [classes, features], in the dtype of `hidden`; the layout of `mlx.nn.Linear`.
        targets: integer [...], in [0, classes) or equal to `ignore_index`.
        bias: [classes], in the dtype of `hidden`; `None`: no bias.
        chunk_size: the number of tokens in a chunk, at least 1. A larger value takes more memory and less
            time. If all tokens fit in one chunk, this is the plain loss.
        weights: as in `cross_entropy`.
        ignore_index: as in `cross_entropy`.
        label_smoothing: as in `cross_entropy`.
        z_loss: as in `cross_entropy`.
        soft_cap: greater than 0, bound of the logits' absolute value (30 in Gemma 2); `None`: no bound.

    Returns:
        `Mean(total, weight)`, as `cross_entropy`.

    Raises:
        ValueError: if the shapes do not fit, or an option is out of its range.
        TypeError: if the dtypes do not fit.

    Reference: gradient in the forward pass, Hsu et al., arXiv:2410.10989; cross entropy without full
    logits, Wijmans et al., arXiv:2411.09009; soft cap, arXiv:2408.00118.

    >>> hidden, weight = mx.ones((3, 2)), mx.zeros((4, 2))
    >>> linear_cross_entropy(hidden, weight, mx.array([1, -100, 2]), ignore_index=-100, chunk_size=2)
    Mean(total=array(2.77259, dtype=float32), weight=array(2, dtype=float32))
    """
    label_smoothing, z_loss = checks.python_number(label_smoothing), checks.python_number(z_loss)
    chunk_size, soft_cap = checks.python_number(chunk_size), checks.python_number(soft_cap)
    _check(hidden, weight, targets, bias, chunk_size, label_smoothing, z_loss, soft_cap)
    weights = weighting.broadcast(_CALLER, weights, targets.shape, "targets'")
    targets = inputs.signed(targets)
    weights = weighting.ignoring(ignore_index, targets, weights)
    targets, factors = inputs.in_range(targets, weight.shape[0], weights)
    if weights is None:
        weight_sum = mx.array(float(targets.size))
    else:
        factors, weight_sum = factors * weights, sums.total(weights)
    if targets.size == 0:
        return Mean(sums.total(hidden), weight_sum)
    total = projection.summed(
        Form(label_smoothing, z_loss, soft_cap),
        chunk_size,
        weighting.masked(weights, hidden).reshape(-1, hidden.shape[-1]),
        weight,
        factors.reshape(-1),
        targets.astype(mx.int32).reshape(-1),
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
    inputs.floating(_CALLER, "hidden", hidden)
    inputs.floating(_CALLER, "weight", weight)
    inputs.integers(_CALLER, "targets", targets)
    inputs.labelled(_CALLER, hidden, targets, ("hidden", "targets"))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        rule = f"weight must be [classes, {hidden.shape[-1]}] as hidden has features"
        raise checks.error(_CALLER, f"{rule}, got {weight.shape}")
    for name, array, shape in (("weight", weight, weight.shape), ("bias", bias, weight.shape[:1])):
        if array is None:
            continue
        inputs.floating(_CALLER, name, array)
        if array.dtype != hidden.dtype:
            raise TypeError(f"{_CALLER}: {name} must have hidden's dtype {hidden.dtype}, got {array.dtype}")
        if array.shape != shape:
            raise checks.error(_CALLER, f"{name} must be {shape}, one for each class, got {array.shape}")
    chunk_size = checks.integer(_CALLER, "chunk_size", chunk_size, least=1)
    label_smoothing = checks.number(_CALLER, "label_smoothing", label_smoothing, least=0, below=1)
    z_loss = checks.number(_CALLER, "z_loss", z_loss, least=0)
    if soft_cap is not None:
        soft_cap = checks.number(_CALLER, "soft_cap", soft_cap, above=0)
