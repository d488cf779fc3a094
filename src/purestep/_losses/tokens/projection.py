"""The chunks of `linear_cross_entropy`: their order, their losses, and their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import hardware, pacing, sums
from purestep._core.tracing import graph
from purestep._core.tracing.custom import custom_function
from purestep._losses.core import kernel, numerics
from purestep._losses.core.fused import fused_cross_entropy
from purestep._losses.core.kernel_source import Form

_ENDS = 6  # groups of kernels that end after a chunk on CUDA, of the ten that MLX lets wait
_AHEAD = 1  # chunks that the host submits on other GPUs before it waits for an earlier one

Primals = tuple[mx.array, ...]  # hidden, weight, factors, targets and, if there is one, bias


def losses_of(form: Form, targets: mx.array, *, once: bool = False) -> Callable[[mx.array], mx.array]:
    """Return the function from logits [tokens, classes] to losses, float32 [tokens].

    With `once` the function can be differentiated once only, and is faster without compilation.
    """

    def losses(logits: mx.array) -> mx.array:
        if form == Form() and hardware.on_gpu():
            fast = mx.fast.cross_entropy if once else fused_cross_entropy
            return fast(logits, targets)  # computes in float32
        logits = logits.astype(mx.float32)
        if form.soft_cap is not None:
            logits = form.soft_cap * mx.tanh(logits / form.soft_cap)
        logits, largest = numerics.shifted(logits)
        normalizer = numerics.normalizer(logits)
        # `cross_entropy` adds these terms in another order, for class weights, and rounds differently.
        found = normalizer - (1 - form.label_smoothing) * numerics.gather(logits, targets)
        if form.label_smoothing:
            found = found - form.label_smoothing * sums.mean(logits, -1)
        if form.z_loss:
            found = found + form.z_loss * mx.square(normalizer + largest.squeeze(-1))
        return found

    return losses


def summed(form: Form, chunk_size: int, *primals: mx.array) -> mx.array:
    """Return the sum of factors times losses, 0-d float32, differentiable in all but the targets.

    Args:
        form: the loss of one token.
        chunk_size: the number of tokens in a chunk.
        *primals: hidden [tokens, features], weight [classes, features], factors float32 [tokens], targets
            int32 [tokens] in range, and optionally bias [classes]. A loss with a factor of zero is skipped.
    """
    hidden, weight, _, _, *extra = primals
    if hidden.shape[0] <= chunk_size and not kernel.serves(form, hidden.dtype):
        return _whole(form, *primals)
    # MLX does not tell whether a gradient will be taken, but an array that it differentiates depends on a
    # Copy operation. A wrong guess only costs time: the backward pass computes each gradient that is still
    # missing.
    for_weight = any("Copy" in graph.primitives(array) for array in (weight, *extra))
    for_hidden = for_weight or "Copy" in graph.primitives(hidden)

    @custom_function
    def forward(*primals: mx.array) -> tuple[mx.array, ...]:
        sums = _chunks(form, chunk_size, primals, for_hidden, for_weight)
        return tuple(x for x in sums if x is not None)

    @forward.vjp
    def backward(primals: Primals, cotangents: Primals, outputs: Primals):
        _, losses, *made = outputs
        if not for_weight:
            # This is never evaluated if only the gradient of hidden is used and already computed.
            late = _chunks(form, chunk_size, primals, not for_hidden, True)
            made += [x for x in late[2:] if x is not None]
        of_hidden, of_weight, *of_bias = made
        gradients = [of_hidden, of_weight, losses, None, *of_bias]
        return tuple(
            mx.zeros_like(primal) if gradient is None else _scaled(form, primals, cotangents[0], gradient, i)
            for i, (primal, gradient) in enumerate(zip(primals, gradients, strict=True))
        )

    outputs: Any = forward(*primals)
    return outputs[0]


class _Sums(NamedTuple):
    """The weighted sum of losses, the losses, and the requested gradients of the sum."""

    total: mx.array
    losses: mx.array
    hidden: mx.array | None
    weight: mx.array | None
    bias: mx.array | None


def _chunks(form: Form, chunk_size: int, primals: Primals, for_hidden: bool, for_weight: bool) -> _Sums:
    hidden, weight, factors, targets, *bias = primals
    # The gradient of a bias is a sum that has nothing to add to.
    over = (for_hidden or for_weight) and not bias and kernel.overwrites(form, hidden.dtype)
    if over:  # the slices are then dense too
        hidden, factors, targets = map(kernel.dense, (hidden, factors, targets))
    losses, ends, of_hidden, of_weight, of_bias = [], list[mx.array](), [], None, None
    for start in range(0, hidden.shape[0], chunk_size):
        part = slice(start, start + chunk_size)
        some, factor, before = hidden[part], factors[part], _before(ends, weight)
        if before or over:
            some = _after(some, before or [factor])  # logits of their own, which `mx.compile` never merges
        logits, zeros, made = _logits(some, weight, *bias), None, []
        if for_hidden or for_weight:
            if over:  # what reads `zeros` or `some` is computed after the gradient is in the logits' place
                loss, zeros, some = kernel.losses_over(form, logits, factor, targets[part], some)
                slope = logits
            else:
                loss, slope = _differentiated(form, logits, factor, targets[part])
            if for_hidden:
                of_hidden.append(slope @ weight if zeros is None else mx.addmm(zeros, slope, weight))
                made.append(of_hidden[-1])
            if for_weight:
                of_weight = _added(of_weight, slope, some)
                made.append(of_weight)
                if bias:
                    column = sums.total(slope, 0)
                    of_bias = column if of_bias is None else of_bias + column
                    made.append(of_bias)
        else:
            loss = losses_of(form, targets[part], once=True)(logits)
        losses.append(loss)
        ends.append(_after(loss, made) if made else loss)
    whole = mx.where(factors == 0, 0.0, mx.concatenate(losses))
    joined = mx.concatenate(of_hidden) if for_hidden else None
    return _Sums(sums.total(whole * factors), whole, joined, of_weight, of_bias)


def _before(ends: list[mx.array], weight: mx.array) -> list[mx.array]:
    """Return what the next chunk is computed after, given arrays that are ready when earlier chunks are.

    A GPU frees a buffer when the work that reads it is done. A host that never waits submits all chunks
    before the GPU has finished the first one, and each chunk then has its own memory.
    """
    if not ends or not hardware.on_gpu():
        return ends[-1:]
    if pacing.usable(weight):
        return [pacing.ended(ends[-1], weight, _ENDS)]
    earlier = ends[: len(ends) - _AHEAD][-1:]
    return [ends[-1], *(mx.add(mx.sum(end), 0.0, stream=mx.cpu) for end in earlier)]  # the host waits


def _differentiated(
    form: Form, logits: mx.array, factors: mx.array, targets: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the losses, and the gradient of their sum times `factors` in the logits."""
    if kernel.serves(form, logits.dtype):
        return kernel.losses_and_slope(form, logits, factors, targets)
    (losses,), (slope,) = mx.vjp(losses_of(form, targets, once=True), [logits], [factors])
    return losses, slope


def _added(so_far: mx.array | None, slope: mx.array, hidden: mx.array) -> mx.array:
    """Add the gradient of the weights over one chunk to the sum over earlier chunks.

    The sum has the dtype of the weights. With 2048 bfloat16 tokens in a chunk on an H200, a float32 sum would
    add 0.1 to 0.3 times the memory and time of the plain loss. float16 gradients are summed in float32:
    before the division by the number of tokens, their sum would exceed 65504.
    """
    if hidden.dtype == mx.float16:
        product = (slope.T @ hidden).astype(mx.float32)
        return product if so_far is None else so_far + product
    return slope.T @ hidden if so_far is None else mx.addmm(so_far, slope.T, hidden)


def _after(array: mx.array, others: list[mx.array]) -> mx.array:
    """Return the array after the others are computed; without this MLX may run all chunks at once."""
    ordered: Any = mx.depends([array], others)
    return ordered[0]


def _scaled(form: Form, primals: Primals, cotangent: mx.array, gradient: mx.array, index: int) -> mx.array:
    """Return the gradient of a primal times a cotangent, in the primal's dtype; it is differentiable again.

    Each gradient has its own function, because all outputs of one function are evaluated together.
    """
    targets = primals[3]

    @custom_function
    def scale(cotangent: mx.array, gradient: mx.array, *primals: mx.array) -> mx.array:
        return (cotangent * gradient).astype(primals[index].dtype)

    @scale.vjp
    def again(arrays: Primals, tangent: mx.array, output: mx.array):
        cotangent, gradient, *primals = arrays

        def first(cotangent: mx.array, *floating: mx.array) -> mx.array:
            def total(*floating: mx.array) -> mx.array:
                return _whole(form, *floating[:3], targets, *floating[3:])

            found = mx.vjp(total, list(floating), [cotangent])[1]
            return found[index if index < 3 else index - 1]

        floating = [*primals[:3], *primals[4:]]
        of_cotangent, *found = mx.vjp(first, [cotangent, *floating], [tangent])[1]
        return of_cotangent, mx.zeros_like(gradient), *found[:3], mx.zeros_like(targets), *found[3:]

    scaled: Any = scale(cotangent, gradient, *primals)
    return scaled


def _whole(form: Form, *primals: mx.array) -> mx.array:
    """Return the sum as one expression of all logits, which MLX can differentiate and map."""
    hidden, weight, factors, targets, *bias = primals
    losses = losses_of(form, targets)(_logits(hidden, weight, *bias))
    return sums.total(mx.where(factors == 0, 0.0, losses * factors))


def _logits(hidden: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    return hidden @ weight.T if bias is None else mx.addmm(bias, hidden, weight.T)
