"""Cross entropies and their gradients in the logits by one kernel on a GPU, which reads each row once.

On CUDA the gradient may take the place of the logits in memory. The Metal kernel is untested, so it is used
only if the environment variable PURESTEP_METAL_KERNELS is 1.
"""

import functools
import os
from typing import Any

import mlx.core as mx

from purestep._core import cuda, hardware
from purestep._core.tracing import custom
from purestep._losses.core.kernel_source import CUDA_HEADER, Form, source

_THREADS = 1024
_KEPT = 112 * 1024  # bytes of a row: half of the shared memory of a multiprocessor of an H100
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)


def usable() -> bool:
    """Tell whether the kernel may be used here: on a GPU, in a step that `compiled` traces."""
    if hardware.on_gpu() and mx.metal.is_available():
        return cuda.allowed() and os.environ.get("PURESTEP_METAL_KERNELS") == "1"
    return cuda.usable()


def serves(form: Form, dtype: mx.Dtype) -> bool:
    """Tell whether the kernel computes this loss of logits of this dtype here: its numbers become source."""
    return usable() and dtype in _DTYPES and not any(isinstance(each, mx.array) for each in form)


def overwrites(form: Form, dtype: mx.Dtype) -> bool:
    """Tell whether `losses_over` computes this loss of logits of this dtype here."""
    return serves(form, dtype) and hardware.on_cuda()


def losses_and_slope(
    form: Form, logits: mx.array, factors: mx.array, targets: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the losses, and the gradient of their sum times `factors` in the logits; both without gradient.

    Args:
        form: the loss of one token.
        logits: [tokens, classes], of a dtype that `serves` accepts, not empty.
        factors: float32 [tokens]. The loss and the gradient of a token of factor 0 are 0.
        targets: int32 [tokens], in range.

    Returns:
        The losses, float32 [tokens]; the gradient in the shape and dtype of the logits.
    """
    losses, slope = _launched(form, [logits, factors, targets], [logits.shape])
    return losses, slope


def dense(array: mx.array) -> mx.array:
    """Return the array with its elements in C order, as `losses_over` reads it."""
    return array if custom.is_capturing() else mx.contiguous(array)  # MLX does not describe this operation


def losses_over(
    form: Form, logits: mx.array, factors: mx.array, targets: mx.array, hidden: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the losses, and write the gradient of `losses_and_slope` over the logits; on CUDA alone.

    MLX does not know of the write. So nothing else may read the logits, and whatever reads the gradient must
    also read an array that the same kernel writes: MLX computes it after them. All arguments must be dense.

    Args:
        form: as for `losses_and_slope`, like the other arguments.
        logits: the result of a product, which no other operation has or can be merged with.
        factors: float32 [tokens].
        targets: int32 [tokens], in range.
        hidden: [tokens, features], of the dtype of the logits.

    Returns:
        The losses, float32 [tokens]; zeros [features], and a copy of `hidden`, of the dtype of the logits.
    """
    return _launched(form, [logits, factors, targets, hidden], [hidden.shape[1:], hidden.shape], over=True)


def _launched(
    form: Form, inputs: list[mx.array], written: list[tuple[int, ...]], *, over: bool = False
) -> Any:
    logits = inputs[0]
    tokens, classes = logits.shape
    shapes = [((tokens,), mx.float32), *((shape, logits.dtype) for shape in written)]
    if custom.is_capturing():
        return custom.opaque("CustomKernel", inputs, shapes)
    sizes = [("N", classes), ("THREADS", _THREADS), *([("FEATURES", written[0][0])] if over else [])]
    return _kernel(form, not hardware.on_cuda(), _kept(classes, logits.dtype.size), over)(
        inputs=inputs,
        template=[("T", logits.dtype), *sizes],
        grid=(tokens * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape for shape, _ in shapes],
        output_dtypes=[dtype for _, dtype in shapes],
    )


def _kept(classes: int, size: int) -> int:
    """Return the bytes of shared memory that keep a row, or 0 where it is read again."""
    row = classes * size
    if row % 16 or row > _KEPT or not hardware.on_cuda():
        return 0
    return row if int(mx.device_info().get("compute_capability_major", 0)) >= 9 else 0


@functools.cache
def _kernel(form: Form, metal: bool, kept: int, over: bool) -> Any:
    make: Any = mx.fast.metal_kernel if metal else mx.fast.cuda_kernel
    return make(
        name=f"purestep_cross_entropy_{kept}{'_over' if over else ''}",
        input_names=["logits", "factors", "targets", *(["hidden"] if over else [])],
        output_names=["losses", "zeros", "copy"] if over else ["losses", "slope"],
        header="" if metal else CUDA_HEADER,
        source=source(form, metal=metal, kept=kept > 0, over=over),
        ensure_row_contiguous=not over,  # a copy would be written in place of the logits
        **({"shared_memory": kept} if kept else {}),
    )
