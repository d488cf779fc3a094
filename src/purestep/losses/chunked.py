"""Cross entropy of an output projection whose logits are never whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep import checks, graph
from purestep.losses import reduce
from purestep.mean import Mean

_WHERE = "linear_cross_entropy"


def linear_cross_entropy(
    hidden: mx.array,
    weight: mx.array,
    targets: mx.array,
    *,
    bias: mx.array | None = None,
    chunk_size: int = 1024,
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
    afterwards: three matrix products, as the plain loss has, and memory for one or two chunks.

    - A target out of range that is not ignored makes the loss and its gradients NaN.
    - A token of zero weight, ignored or masked, has no part in loss or gradients, and gets a gradient of
      exactly zero; its row of `hidden` may hold NaN.
    - The gradient of a gradient is exact too, but holds all the logits.
    - Under `mx.vmap` everything has to be one chunk: what orders the chunks, `mx.depends`, cannot be mapped.

    Args:
        hidden: floating [..., features].
        weight: [classes, features], of the dtype of `hidden`; laid out as that of `mlx.nn.Linear`.
        targets: integer [...], in [0, classes) or equal to `ignore_index`.
        bias: [classes].
        chunk_size: tokens at a time, at least 1. Memory grows with it, and the number of passes over the
            gradient of `weight` falls.
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
        factors, weight_sum = factors * counts, counts.sum()
    if targets.size == 0:
        return Mean(hidden.astype(mx.float32).sum(), weight_sum)
    plan = Plan(chunk_size)
    form = Form(label_smoothing, z_loss, soft_cap)
    total = summed(
        form,
        plan,
        reduce.keep(counts, hidden).reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        factors.reshape(-1),
        mx.clip(targets, 0, classes - 1).astype(mx.int32).reshape(-1),
    )
    return Mean(total, weight_sum)


class Plan(NamedTuple):
    """How the chunks are run; every plan gives the same numbers but for rounding.

    Attributes:
        chunk_size: tokens at a time.
        wide: add up the gradient of the weights in float32; else in their own dtype, which is rounded once
            a chunk, and on a device whose memory is the bottleneck saves most of the time of it.
        early: make the gradients in the forward pass, when they will be wanted; else all logits are
            computed a second time in the backward pass.
        wait: on a GPU, let the host wait for each chunk. CUDA gives a buffer back when the work that
            reads it is done, and the host is done with all chunks before the GPU is with the first: they
            would all have memory of their own.
        lag: how many chunks the host may be ahead of the one that it waits for, so that the GPU never idles.
    """

    chunk_size: int
    wide: bool = True
    early: bool = True
    wait: bool = True
    lag: int = 1


class Form(NamedTuple):
    """What the loss of one token is, as a function of its logits."""

    label_smoothing: float
    z_loss: float
    soft_cap: float | None

    def losses(self, targets: mx.array) -> Callable[[mx.array], mx.array]:
        """Return the function from logits [tokens, classes] to losses, float32 [tokens]."""

        def losses(logits: mx.array) -> mx.array:
            if self == (0.0, 0.0, None) and _on_gpu():
                return mx.fast.cross_entropy(logits, targets)  # in float32 within
            logits = logits.astype(mx.float32)
            if self.soft_cap is not None:
                logits = self.soft_cap * mx.tanh(logits / self.soft_cap)
            # Less their largest: near it, at 1e4, float32 has three digits after the point.
            largest = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
            logits = logits - largest
            normalizer = mx.logsumexp(logits, axis=-1)
            found = normalizer - (1 - self.label_smoothing) * reduce.chosen(logits, targets)
            if self.label_smoothing:
                found = found - self.label_smoothing * logits.mean(axis=-1)
            if self.z_loss:
                found = found + self.z_loss * mx.square(normalizer + largest.squeeze(-1))
            return found

        return losses


class _Sums(NamedTuple):
    """The weighted sum of losses, the losses, and the gradients of the sum that were asked for."""

    total: mx.array
    losses: mx.array
    hidden: mx.array | None
    weight: mx.array | None
    bias: mx.array | None


def summed(
    form: Form,
    plan: Plan,
    hidden: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    factors: mx.array,
    targets: mx.array,
) -> mx.array:
    """Return the sum of `factors` times losses, 0-d float32, differentiable in all but the targets.

    Args:
        form: the loss of one token.
        plan: how the chunks are run.
        hidden: [tokens, features].
        weight: [classes, features].
        bias: [classes].
        factors: float32 [tokens]; a loss of factor zero is left out.
        targets: int32 [tokens], in range.
    """
    extra = () if bias is None else (bias,)
    if hidden.shape[0] <= plan.chunk_size:
        return _whole(form, hidden, weight, factors, targets, *extra)
    # MLX does not say whether a gradient will be taken, but what it differentiates descends from a copy.
    # A wrong guess costs time, no more: whatever the forward pass has not made, the backward pass makes.
    wanted_weight = plan.early and any("Copy" in graph.primitives(array) for array in (weight, *extra))
    wanted_hidden = plan.early and (wanted_weight or "Copy" in graph.primitives(hidden))

    def passes(primals: tuple[mx.array, ...], for_hidden: bool, for_weight: bool) -> _Sums:
        hidden, weight, factors, targets, *extra = primals
        bias = extra[0] if extra else None
        return _chunks(form, plan, hidden, weight, bias, factors, targets, for_hidden, for_weight)

    @mx.custom_function
    def forward(*primals: mx.array) -> tuple[mx.array, ...]:
        return tuple(x for x in passes(primals, wanted_hidden, wanted_weight) if x is not None)

    @forward.vjp
    def backward(primals, cotangents, outputs):
        _, losses, *made = outputs
        ready = iter(made)
        for_hidden = next(ready) if wanted_hidden else None
        for_weight = next(ready) if wanted_weight else None
        for_bias = next(ready) if wanted_weight and extra else None
        if for_hidden is None:
            for_hidden = passes(primals, True, False).hidden if wanted_weight else None
        if for_weight is None:
            rest = passes(primals, for_hidden is None, True)
            for_hidden = rest.hidden if for_hidden is None else for_hidden
            for_weight, for_bias = rest.weight, rest.bias
        found = [for_hidden, for_weight, losses, *([for_bias] if extra else [])]
        scaled = _scaled(form, primals, cotangents[0], found)
        return *scaled[:3], mx.zeros_like(primals[3]), *scaled[3:]

    outputs: Any = forward(hidden, weight, factors, targets, *extra)
    return outputs[0]


def _chunks(
    form: Form,
    plan: Plan,
    hidden: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    factors: mx.array,
    targets: mx.array,
    for_hidden: bool,
    for_weight: bool,
) -> _Sums:
    total = mx.array(0.0)
    losses: list[mx.array] = []
    hidden_gradients: list[mx.array] = []
    weight_gradient: mx.array | None = None
    bias_gradient: mx.array | None = None
    ends: list[mx.array] = []  # of each chunk, a scalar that is there when all of the chunk is
    for start in range(0, hidden.shape[0], plan.chunk_size):
        part = slice(start, start + plan.chunk_size)
        some, factor = hidden[part], factors[part]
        if ends:
            # Without an order MLX may run all chunks at once.
            after = [ends[-1]]
            if plan.wait and _on_gpu() and len(ends) > plan.lag:
                # A number that takes its way over the CPU makes the host wait for it.
                after.append(mx.add(ends[-1 - plan.lag], 0.0, stream=mx.cpu))
            some = _after(some, after)
        logits = some @ weight.T if bias is None else mx.addmm(bias, some, weight.T)
        of_logits = form.losses(targets[part])
        made = []
        if for_hidden or for_weight:
            (loss,), (slope,) = mx.vjp(of_logits, [logits], [factor])
            if for_hidden:
                made.append(slope @ weight)
                hidden_gradients.append(made[-1])
            if for_weight:
                weight_gradient = _added(weight_gradient, slope, some, plan.wide)
                made.append(weight_gradient)
                if bias is not None:
                    column = slope.astype(mx.float32).sum(axis=0)
                    bias_gradient = column if bias_gradient is None else bias_gradient + column
                    made.append(bias_gradient)
        else:
            loss = of_logits(logits)
        loss = mx.where(factor == 0, 0.0, loss)
        losses.append(loss)
        total = total + (loss * factor).sum()
        ends.append(_after(total, made) if made else total)
    joined = mx.concatenate(hidden_gradients) if for_hidden else None
    return _Sums(total, mx.concatenate(losses), joined, weight_gradient, bias_gradient)


def _added(sum_so_far: mx.array | None, slope: mx.array, hidden: mx.array, wide: bool) -> mx.array:
    """Add the gradient of the weights over one chunk to that over the chunks before."""
    if sum_so_far is None:
        first = slope.T @ hidden
        return first.astype(mx.float32) if wide else first
    if sum_so_far.dtype == hidden.dtype:
        return mx.addmm(sum_so_far, slope.T, hidden)
    return _accumulate(sum_so_far, slope.T @ hidden)


def _accumulate(wide: mx.array, narrow: mx.array) -> mx.array:
    return wide + narrow.astype(mx.float32)


def _scaled(
    form: Form, primals: tuple[mx.array, ...], cotangent: mx.array, gradients: list[mx.array]
) -> list[mx.array]:
    """Return gradients times a cotangent in the dtypes of the primals; they have gradients of their own."""
    targets, floating = primals[3], [*primals[:3], *primals[4:]]
    count = len(floating)

    @mx.custom_function
    def scale(*arrays: mx.array) -> tuple[mx.array, ...]:
        cotangent, floating, gradients = arrays[0], arrays[1 : 1 + count], arrays[1 + count :]
        return tuple((cotangent * g).astype(x.dtype) for g, x in zip(gradients, floating, strict=True))

    @scale.vjp
    def again(arrays, cotangents, outputs):
        def first(cotangent: mx.array, *floating: mx.array) -> list[mx.array]:
            def total(hidden: mx.array, weight: mx.array, factors: mx.array, *extra: mx.array) -> mx.array:
                return _whole(form, hidden, weight, factors, targets, *extra)

            return mx.vjp(total, list(floating), [cotangent])[1]

        found = mx.vjp(first, list(arrays[: 1 + count]), list(cotangents))[1]
        return *found, *(mx.zeros_like(gradient) for gradient in arrays[1 + count :])

    scaled: Any = scale(cotangent, *floating, *gradients)
    return list(scaled)


def _whole(
    form: Form,
    hidden: mx.array,
    weight: mx.array,
    factors: mx.array,
    targets: mx.array,
    bias: mx.array | None = None,
) -> mx.array:
    """Return the sum as one expression of all logits, which MLX can transform as it likes."""
    logits = hidden @ weight.T if bias is None else mx.addmm(bias, hidden, weight.T)
    losses = form.losses(targets)(logits)
    return mx.where(factors == 0, 0.0, losses * factors).sum()


def _after(array: mx.array, others: list[mx.array]) -> mx.array:
    """Return the array, to be had when the others are there too."""
    ordered: Any = mx.depends([array], others)
    return ordered[0]


def _on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)


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
        raise checks.refuse(
            _WHERE, f"weight must be [classes, {hidden.shape[-1]}] as hidden has features, got {weight.shape}"
        )
    for name, array, shape in (("weight", weight, weight.shape), ("bias", bias, weight.shape[:1])):
        if array is None:
            continue
        reduce.floating(_WHERE, name, array)
        if array.dtype != hidden.dtype:
            raise TypeError(f"{_WHERE}: {name} must have hidden's dtype {hidden.dtype}, got {array.dtype}")
        if array.shape != shape:
            raise checks.refuse(_WHERE, f"{name} must be {shape}, one for each class, got {array.shape}")
    checks.integer(_WHERE, "chunk_size", chunk_size, least=1)
    checks.number(_WHERE, "label_smoothing", label_smoothing, least=0, below=1)
    checks.number(_WHERE, "z_loss", z_loss, least=0)
    if soft_cap is not None:
        checks.number(_WHERE, "soft_cap", soft_cap, above=0)
