"""Measured rates: matrix products and copies on the default device."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks, tree

_FLOATS = ("float32", "float16", "bfloat16")
_LONG = 0.01  # seconds; a shorter product says more about the launch than about the product
_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_LEAST, _MOST = 2**26, 2**29  # bytes of a copy; a smaller array stays in a CPU's caches


class Rate(NamedTuple):
    """A rate that was measured.

    Attributes:
        rate: FLOP or bytes per second: the work by the median time.
        work: FLOP or bytes of one run.
        runs: the number of runs that were timed.
    """

    rate: float
    work: float
    runs: int


def matmul_rate(dtype: mx.Dtype = mx.float32, *, seconds: float = 0.3) -> Rate:
    """Measure the rate of a product of two square matrices on the default device.

    The matrices grow from 256 to at most 8192 rows, until a product takes 10 ms. It waits for the device:
    call it between steps, on a device that does nothing else. Within `with mx.stream(mx.cpu):` it measures
    the BLAS of the CPU.

    Args:
        dtype: `mx.float32`, `mx.float16` or `mx.bfloat16`.
        seconds: how long to repeat the product; positive. At least three runs are timed.

    Returns:
        The rate in FLOP/s, a multiply-add as two.

    Raises:
        ValueError: if `dtype` is another, or `seconds` is not positive and finite.
        TypeError: if `dtype` is not an `mx.Dtype`.

    >>> matmul_rate(seconds=0.01).rate > 0
    True
    """
    caller = "matmul_rate"
    if not isinstance(dtype, mx.Dtype):
        raise TypeError(f"{caller}: dtype must be an mx.Dtype, got {type(dtype).__name__}")
    checks.one_of(caller, "dtype", tree.dtype_name(dtype), _FLOATS)
    seconds = checks.number(caller, "seconds", seconds, above=0)
    timed, size = 0.0, _SIZES[0]
    a = b = mx.array(0)
    for size in _SIZES:
        a, b = (mx.random.normal((size, size), key=mx.random.key(seed)).astype(dtype) for seed in (0, 1))
        mx.eval(a, b)
        _timed(lambda a=a, b=b: a @ b)  # the first run may compile, and it fills the cache of memory
        timed = _timed(lambda a=a, b=b: a @ b)
        if timed >= _LONG:
            break
    return _measured(lambda: a @ b, 2.0 * size**3, seconds, timed)


def copy_rate(*, seconds: float = 0.3) -> Rate:
    """Measure how fast the default device reads an array and writes another of the same size.

    The array grows from 64 MiB to at most 512 MiB, until a copy takes 10 ms. It waits for the device.

    Args:
        seconds: how long to repeat the copy; positive. At least three runs are timed.

    Returns:
        The rate in bytes per second; read and written bytes both count.

    Raises:
        ValueError: if `seconds` is not positive and finite.

    >>> copy_rate(seconds=0.01).rate > 0
    True
    """
    seconds = checks.number("copy_rate", "seconds", seconds, above=0)
    size, timed, x = _LEAST, 0.0, mx.array(0)
    while size <= _MOST:
        x = mx.zeros(size // 4, dtype=mx.float32)
        mx.eval(x)
        _timed(lambda x=x: mx.negative(x))
        timed = _timed(lambda x=x: mx.negative(x))
        if timed >= _LONG:
            break
        size *= 2
    return _measured(lambda: mx.negative(x), 2.0 * x.nbytes, seconds, timed)


def _measured(run: Callable[[], mx.array], work: float, seconds: float, once: float) -> Rate:
    runs = max(3, min(200, int(seconds / max(once, 1e-6))))
    times = [_timed(run) for _ in range(runs)]
    return Rate(work / max(median(times), 1e-9), work, runs)


def _timed(run: Callable[[], mx.array]) -> float:
    mx.synchronize()
    began = time.perf_counter()
    mx.eval(run())
    mx.synchronize()
    return time.perf_counter() - began
