"""Layers in reduced precision whose gradients are summed in float32.

In bfloat16 and float16, MLX adds the gradient of a bias, of a norm's weight and of a looked-up row over all
tokens in that dtype. The sum stops growing when its next term is below its last digit: 4,000 ones give 256.
The functions here give the same values as MLX's bit for bit. Their gradients are sums in float32, rounded
once. For float32 arrays they are MLX's own.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import hardware, sums
from purestep._core.tracing.custom import custom_function
from purestep._layers.fused_norms import fused_norm
from purestep._layers.kernels import columns
from purestep._layers.kernels.norms import Norm

REDUCED = (mx.bfloat16, mx.float16)

# MLX's own, since the names in `mlx.core` may stand for the functions below.
_addmm, _rms_norm, _layer_norm = mx.addmm, mx.fast.rms_norm, mx.fast.layer_norm


def _custom(function: Callable[..., mx.array]) -> Any:
    """Return a function whose `vjp` is to be set; MLX's stubs do not type it."""
    return custom_function(function)


def is_reduced(*arrays: Any) -> bool:
    """Tell whether an array has a reduced floating dtype."""
    for array in arrays:  # noqa: SIM110  (a generator takes twice as long)
        if isinstance(array, mx.array) and array.dtype in REDUCED:
            return True
    return False


def addmm(
    c: mx.array,
    a: mx.array,
    b: mx.array,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    stream: Any = None,
) -> mx.array:
    """Return `beta * c + alpha * (a @ b)`, with `c` a bias.

    Args:
        c: [n], floating. For any other shape this is `mx.addmm`.
        a: [..., k].
        b: [k, n].
        alpha: factor of the product. Unless it is 1, this is `mx.addmm`.
        beta: factor of the bias. Unless it is 1, this is `mx.addmm`.
        stream: as in MLX.

    >>> a, b = mx.ones((4000, 1), mx.bfloat16), mx.ones((1, 1), mx.bfloat16)
    >>> mx.grad(lambda bias: addmm(bias, a, b).sum())(mx.zeros(1, mx.bfloat16))
    array([4000], dtype=bfloat16)
    """
    one = is_reduced(c) and c.ndim == 1 and type(b) is mx.array and b.ndim == 2
    if stream is not None or (alpha, beta) != (1.0, 1.0) or not one:
        return _addmm(c, a, b, alpha, beta, stream=stream)
    return _biased(c, a, b)


@_custom
def _biased(c: mx.array, a: mx.array, b: mx.array) -> mx.array:
    return _addmm(c, a, b)


@_biased.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    c, a, b = primals
    _, (for_a, for_b) = mx.vjp(mx.matmul, [a, b], [cotangent])
    return _over_rows(cotangent, c), for_a, for_b


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Return `x @ weight.T + bias`, with a gradient of the weight in the order of its memory.

    MLX's is a transposed array: on a GPU, reading it together with the weight takes several times as long.

    Args:
        x: [..., rows, in], floating.
        weight: [out, in].
        bias: [out], or `None`.

    >>> linear(mx.ones((2, 3)), mx.ones((4, 3)), None).shape
    (2, 4)
    """
    return _linear(x, weight) if bias is None else _linear_biased(x, weight, bias)


@_custom
def _linear(x: mx.array, weight: mx.array) -> mx.array:
    return (_as_rows(x) @ weight.T).reshape(*x.shape[:-1], weight.shape[0])


@_linear.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    x, weight = primals
    return _of_product(x, weight, cotangent)


@_custom
def _linear_biased(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    return _addmm(bias, _as_rows(x), weight.T).reshape(*x.shape[:-1], weight.shape[0])


@_linear_biased.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    x, weight, bias = primals
    return *_of_product(x, weight, cotangent), _over_rows(cotangent, bias)


def _of_product(x: mx.array, weight: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    """Return the gradients of `x` and `weight`."""
    slopes = _as_rows(cotangent)
    return (slopes @ weight).reshape(x.shape), slopes.T @ _as_rows(x)


def _as_rows(x: mx.array) -> mx.array:
    """Return [..., n] as a matrix.

    Each product would do this by itself, to the same array again. `mx.compile` merges equal operations, and
    an operation fewer is host time saved.
    """
    return x.flatten(0, -2)


def affine(x: mx.array, weight: mx.array | None, bias: mx.array | None) -> mx.array:
    """Return `weight * x + bias`, along the last axis.

    Args:
        x: [..., n], floating.
        weight: [n], or `None` for 1.
        bias: [n], or `None` for 0.

    >>> x = mx.ones((4000, 1), mx.bfloat16)
    >>> mx.grad(lambda weight: affine(x, weight, None).sum())(mx.ones(1, mx.bfloat16))
    array([4000], dtype=bfloat16)
    """
    if weight is not None:
        x = _scaled(weight, x) if is_reduced(weight) else weight * x
    if bias is not None:
        x = _shifted(x, bias) if is_reduced(bias) else x + bias
    return x


@_custom
def _scaled(weight: mx.array, x: mx.array) -> mx.array:
    return weight * x


@_scaled.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    weight, x = primals
    product = cotangent.astype(mx.float32) * x.astype(mx.float32)
    return _over_rows(product, weight), (cotangent * weight).astype(x.dtype)


@_custom
def _shifted(x: mx.array, bias: mx.array) -> mx.array:
    return x + bias


@_shifted.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    x, bias = primals
    return cotangent.astype(x.dtype), _over_rows(cotangent, bias)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, *, stream: Any = None) -> mx.array:
    """Return `mx.fast.rms_norm(x, weight, eps)`.

    Args:
        x: [..., n], floating.
        weight: [n], or `None`.
        eps: added to the mean of squares, at least 0.
        stream: as in MLX.

    >>> x = mx.ones((4000, 2), mx.bfloat16)
    >>> mx.grad(lambda weight: rms_norm(x, weight, 0.0).sum())(mx.ones(2, mx.bfloat16))
    array([4000, 4000], dtype=bfloat16)
    """
    if stream is None and (found := _fused(False, eps, x, weight, None)) is not None:
        return found
    if not is_reduced(weight):
        return _rms_norm(x, weight, eps, stream=stream)
    return _normed(x, weight, None, lambda x, w, b: _rms_norm(x, w, eps, stream=stream))


def layer_norm(
    x: mx.array,
    weight: mx.array | None = None,
    bias: mx.array | None = None,
    eps: float = 1e-5,
    *,
    stream: Any = None,
) -> mx.array:
    """Return `mx.fast.layer_norm(x, weight, bias, eps)`.

    Args:
        x: [..., n], floating.
        weight: [n], or `None`.
        bias: [n], or `None`.
        eps: added to the variance, at least 0.
        stream: as in MLX.

    >>> x = mx.broadcast_to(mx.array([-1.0, 1.0], mx.bfloat16), (4000, 2))
    >>> mx.grad(lambda bias: layer_norm(x, None, bias, 0.0).sum())(mx.zeros(2, mx.bfloat16))
    array([4000, 4000], dtype=bfloat16)
    """
    if stream is None and (found := _fused(True, eps, x, weight, bias)) is not None:
        return found
    if not is_reduced(weight, bias):
        return _layer_norm(x, weight, bias, eps, stream=stream)
    return _normed(x, weight, bias, lambda x, w, b: _layer_norm(x, w, b, eps, stream=stream))


def _fused(
    centered: bool, eps: float, x: mx.array, weight: mx.array | None, bias: mx.array | None
) -> mx.array | None:
    """Return the norm by a kernel of its own, or `None` where there is none for these arrays."""
    norm = Norm(float(eps), centered, weight is not None, bias is not None)
    return fused_norm(norm, x, *(array for array in (weight, bias) if array is not None))


def _normed(x: mx.array, weight: mx.array | None, bias: mx.array | None, norm: Any) -> mx.array:
    """Return `norm(x, weight, bias)`, where either of the last two may be `None`."""
    present = [array for array in (weight, bias) if array is not None]

    def both(arrays: Any) -> tuple[mx.array | None, mx.array | None]:
        given = list(arrays)
        return None if weight is None else given.pop(0), None if bias is None else given.pop(0)

    @_custom
    def function(x: mx.array, *arrays: mx.array) -> mx.array:
        return norm(x, *both(arrays))

    @function.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        x, *arrays = primals
        w, b = both(arrays)
        # MLX's gradient of a norm with weights sums over rows too: it would be computed for nothing.
        inner = cotangent if w is None else cotangent * w
        _, found = mx.vjp(lambda x: norm(x, None, None), [x], [inner])
        if w is not None:
            plain = norm(x, None, None)
            found.append(_over_rows(cotangent.astype(mx.float32) * plain.astype(mx.float32), w))
        if b is not None:
            found.append(_over_rows(cotangent, b))
        return tuple(found)

    return function(x, *present)


def _over_rows(gradient: mx.array, like: mx.array) -> mx.array:
    """Return the sum over all axes but the last, in float32, in the dtype and shape of a parameter."""
    if columns.serves(gradient):
        return columns.column_sums(gradient).astype(like.dtype).reshape(like.shape)
    rows = gradient.reshape(-1, gradient.shape[-1])
    if hardware.on_gpu():
        # A product with a row of ones adds in float32 too, and is several times as fast as the sum.
        rows = rows.astype(like.dtype)
        return (mx.ones((1, rows.shape[0]), like.dtype) @ rows).reshape(like.shape)
    return sums.total(rows, axis=0).astype(like.dtype).reshape(like.shape)
