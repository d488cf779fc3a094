"""Layer and RMS norms on an NVIDIA GPU: one kernel forward, one backward, and one that ends the sums.

MLX's gradient of a norm with weights reads the input and the cotangent several times, and sums over the rows
in the dtype of the weights. The backward kernel here reads both once. It computes the gradient of the input
and sums of the others over its rows, in float32.
"""

import functools
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core.tracing import custom
from purestep._layers.kernels import columns
from purestep._layers.kernels.columns import ROWS, THREADS, ended
from purestep._layers.kernels.norm_sources import BACKWARD, COMMON, FORWARD, WRITTEN

_PROCESSORS = 132  # of an H100
_BUSY = 384  # threads of the backward kernel for each of them
# Threads of a block of the backward kernel, which may have 65,536 registers. A thread with three pieces of a
# row needs up to 176 (on Blackwell).
_BLOCK, _WIDE_BLOCK = 384, 320
_ALONE = 96  # pieces of 16 bytes of a row that the backward kernel leaves to one warp
_LONGEST = 8192


class Norm(NamedTuple):
    """A norm along the last axis.

    Attributes:
        eps: added to the variance, or to the mean of squares.
        centered: whether the mean is subtracted, as in a layer norm.
        weight: whether there is a weight.
        bias: whether there is a bias; it follows the weight.
    """

    eps: float
    centered: bool
    weight: bool
    bias: bool


def serves(x: mx.array, *present: mx.array) -> bool:
    """Tell whether the kernels compute the norm of this array with these weights, and its gradient."""
    return (
        columns.serves(x)
        and x.shape[-1] <= _LONGEST
        and all(each.dtype == x.dtype and each.shape == x.shape[-1:] for each in present)
    )


def forward(norm: Norm, x: mx.array, *present: mx.array) -> tuple[mx.array, mx.array]:
    """Return the norm of the rows of `x`, and their statistics.

    Args:
        norm: its kind.
        x: [..., n].
        present: the weight and the bias, if there are any, [n] in the dtype of `x`.

    Returns:
        The norm in the shape and dtype of `x`; float32 [rows, 2], the mean and 1 over the deviation.
    """
    stats = (x.size // x.shape[-1], 2)
    if custom.is_capturing():
        shapes = [(x.shape, x.dtype), (stats, mx.float32)]
        out, found = custom.opaque("CustomKernel", [x, *present], shapes)
        return out, found
    wide = x.shape[-1] // (16 // x.dtype.size)
    team = 32 if wide <= 128 else THREADS
    blocks = -(-stats[0] // (THREADS // team))
    out, found = _forward(norm)(
        inputs=[x, *present],
        template=_template(norm, x, team, THREADS),
        grid=(blocks * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[x.shape, stats],
        output_dtypes=[x.dtype, mx.float32],
    )
    return out, found


def backward(norm: Norm, slope: mx.array, stats: mx.array, x: mx.array, *present: mx.array) -> list[mx.array]:
    """Return the gradients of `x`, and of the weight and the bias if there are any.

    Args:
        norm: its kind.
        slope: the cotangent of the norm, in the shape of `x`.
        stats: the statistics that `forward` returned.
        x: as for `forward`.
        present: as for `forward`.
    """
    width, kinds = x.shape[-1], norm.weight + norm.bias
    if custom.is_capturing():
        shapes = [(x.shape, x.dtype), *([((width,), x.dtype)] * kinds)]
        return custom.opaque("CustomKernel", [slope, stats, x, *present], shapes)
    wide = width // (16 // x.dtype.size)
    # The threads of a warp need no barrier. Of a longer row, a thread holds as few columns as it can: their
    # sums stay in its registers.
    team = 32 if wide <= _ALONE else min(THREADS, 32 * -(-wide // 32))
    most = _WIDE_BLOCK if wide > 2 * team else _BLOCK
    threads = team * max(1, most // team)
    blocks = min(_PROCESSORS * (_BUSY // threads), -(-stats.shape[0] // (threads // team)))
    found = _backward(norm)(
        inputs=[x, slope.astype(x.dtype), stats, *present[: int(norm.weight)]],
        template=[*_template(norm, x, team, threads), ("KINDS", kinds)],
        grid=(blocks * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape, *([(blocks, kinds * width)] if kinds else [])],
        output_dtypes=[x.dtype, *([mx.float32] if kinds else [])],
    )
    return [found[0], *(ended(found[1], kinds, width, x.dtype) if kinds else [])]


def _template(norm: Norm, x: mx.array, team: int, threads: int) -> list[tuple[str, Any]]:
    parts = -(-x.shape[-1] // (16 // x.dtype.size * team))
    sizes = {"N": x.shape[-1], "TEAM": team, "THREADS": threads, "PARTS": parts}
    return [("T", x.dtype), *sizes.items(), ("CENTERED", norm.centered)]


@functools.cache
def _forward(norm: Norm) -> Any:
    steps = ["value *= (float)weight[place * WIDE + j];"] * norm.weight
    steps += ["value += (float)bias[place * WIDE + j];"] * norm.bias
    return mx.fast.cuda_kernel(
        name=f"purestep_norm_forward_{_tag(norm)}",
        input_names=["x", *["weight"] * norm.weight, *["bias"] * norm.bias],
        output_names=["out", "stats"],
        source=(COMMON + FORWARD).format(
            rows=ROWS.format(x="x"), eps=f"{norm.eps:.9e}", weighted=" ".join(steps)
        ),
    )


@functools.cache
def _backward(norm: Norm) -> Any:
    sums = ["for_weight"] * norm.weight + ["for_bias"] * norm.bias
    return mx.fast.cuda_kernel(
        name=f"purestep_norm_backward_{_tag(norm)}",
        input_names=["x", "slope", "stats", *["weight"] * norm.weight],
        output_names=["for_x", *(["parts"] if sums else [])],
        source=(COMMON + BACKWARD + (WRITTEN if sums else "")).format(
            rows=ROWS.format(x="x"),
            weighted="value *= (float)weight[place * WIDE + j];" if norm.weight else "",
            written=" ".join(f"write({each}, mine + {i} * N);" for i, each in enumerate(sums)),
        ),
    )


def _tag(norm: Norm) -> str:
    return "_".join(str(int(part)) for part in norm[1:]) + f"_{abs(hash(norm.eps))}"
