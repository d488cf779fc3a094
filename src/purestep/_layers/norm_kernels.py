"""Layer and RMS norms on an NVIDIA GPU: one kernel forward, one backward, and one that ends the sums.

MLX's gradient of a norm with weights reads the input and the cotangent several times, and sums over the rows
in the dtype of the weights. The backward kernel here reads both once. It computes the gradient of the input
and sums of the others over its rows, in float32.
"""

import functools
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import cuda
from purestep._core.tracing import custom
from purestep._layers.norm_sources import BACKWARD, COMMON, ENDED, FORWARD

_THREADS = 256
_BLOCKS = 264  # of the backward kernel: two for each multiprocessor of an H100
_LONGEST = 8192
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


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
        cuda.usable()
        and x.dtype in _DTYPES
        and x.size > 0
        and x.ndim > 0
        and x.shape[-1] % (16 // x.dtype.size) == 0
        and x.shape[-1] <= _LONGEST
        and all(each.dtype == x.dtype and each.shape == x.shape[-1:] for each in present)
    )


def forward(norm: Norm, x: mx.array, *present: mx.array) -> mx.array:
    """Return the norm of the rows of `x`, times the weight, plus the bias; in the dtype of `x`."""
    if custom.is_capturing():
        return custom.opaque("CustomKernel", [x, *present], [(x.shape, x.dtype)])[0]
    rows = x.reshape(-1, x.shape[-1])
    team, sizes = _sizes(x)
    blocks = -(-rows.shape[0] // (_THREADS // team))
    return _kernel("forward", norm)(
        inputs=[rows, *present],
        template=[*sizes, ("CENTERED", norm.centered)],
        grid=(blocks * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[rows.shape],
        output_dtypes=[x.dtype],
    )[0].reshape(x.shape)


def backward(norm: Norm, slope: mx.array, x: mx.array, *present: mx.array) -> list[mx.array]:
    """Return the gradients of `x`, and of the weight and the bias if there are any."""
    width = x.shape[-1]
    kinds = norm.weight + norm.bias
    if custom.is_capturing():
        shapes = [(x.shape, x.dtype), *([((width,), x.dtype)] * kinds)]
        return custom.opaque("CustomKernel", [slope, x, *present], shapes)
    rows, slopes = x.reshape(-1, width), slope.astype(x.dtype).reshape(-1, width)
    team, sizes = _sizes(x)
    blocks = min(_BLOCKS, -(-rows.shape[0] // (_THREADS // team)))
    found = _kernel("backward", norm)(
        inputs=[rows, slopes, *present[: int(norm.weight)]],
        template=[*sizes, ("CENTERED", norm.centered), ("KINDS", kinds)],
        grid=(blocks * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[rows.shape, *([(blocks, kinds * width)] if kinds else [])],
        output_dtypes=[x.dtype, *([mx.float32] if kinds else [])],
    )
    if not kinds:
        return [found[0].reshape(x.shape)]
    ended = _kernel("ended", norm)(
        inputs=[found[1]],
        template=[("T", x.dtype), ("N", width), ("KINDS", kinds)],
        grid=(-(-kinds * width // 32) * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(width,)] * kinds,
        output_dtypes=[x.dtype] * kinds,
    )
    return [found[0].reshape(x.shape), *ended]


def _sizes(x: mx.array) -> tuple[int, list[tuple[str, Any]]]:
    """Return the number of threads for each row, and the sizes that the kernels are built for."""
    width, wide = x.shape[-1], 16 // x.dtype.size
    team = 32 if width <= 1024 else _THREADS
    parts = -(-width // (wide * team))
    return team, [("T", x.dtype), ("N", width), ("TEAM", team), ("PARTS", parts)]


@functools.cache
def _kernel(name: str, norm: Norm) -> Any:
    weight, bias = ["weight"] * norm.weight, ["bias"] * norm.bias
    for_both = [f"for_{each}" for each in (*weight, *bias)]
    place = "(float){}[place * WIDE + j];"
    if name == "forward":
        inputs, outputs, body = ["x", *weight, *bias], ["out"], COMMON + FORWARD
        steps = ["value *= " + place.format("weight")] * norm.weight
        steps += ["value += " + place.format("bias")] * norm.bias
        filled = {"weighted": " ".join(steps)}
    elif name == "backward":
        inputs, body = ["x", "slope", *weight], COMMON + BACKWARD
        outputs = ["for_x", *(["parts"] if for_both else [])]
        written = " ".join(f"write({each}, mine + {i} * N);" for i, each in enumerate(for_both))
        filled = {"weighted": " ".join(["value *= " + place.format("weight")] * norm.weight)}
        filled["written"] = written
        body = body if for_both else body[: body.index("    __shared__ float sums[N];")]
    else:
        inputs, outputs, body = ["parts"], for_both, ENDED
        ended = [f"if (column / N == {i}) {each}[column % N] = (T)total;" for i, each in enumerate(for_both)]
        filled = {"ended": " ".join(ended)}
    tag = f"{name}_{int(norm.centered)}{int(norm.weight)}{int(norm.bias)}_{abs(hash(norm.eps))}"
    return mx.fast.cuda_kernel(
        name=f"purestep_norm_{tag}",
        input_names=inputs,
        output_names=outputs,
        source=body.format(threads=_THREADS, eps=f"{norm.eps:.9e}", **filled),
    )
