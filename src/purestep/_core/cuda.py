"""Kernels for an NVIDIA GPU that read many arrays at once.

MLX runs a kernel for each array. For the hundreds of arrays of a model that costs more than the memory
traffic: a norm needs two kernels an array, and each square is written before it is added.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import hardware
from purestep._core.tracing import custom

_CHUNK = 1 << 14  # elements that one block reads
_THREADS = 256
_MOST = 256  # arrays in one kernel: their addresses are its arguments, of which CUDA takes 4 kB
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)

_FIND = """
    const int chunk = blockIdx.x;
    const int array = places[2 * chunk];
    const long long begin = (long long)places[2 * chunk + 1] * {chunk};
    const T* x = nullptr;
    switch (array) {{
{cases}
    }}
    const long long left = sizes[array] - begin;
    const int count = left < {chunk} ? (int)left : {chunk};
    x += begin;
    constexpr int WIDE = 16 / sizeof(T);
    struct alignas(16) Wide {{ T at[WIDE]; }};
"""

_SQUARES = """
    float total = 0;
    const int wide = ((unsigned long long)x % 16 == 0) ? count / WIDE : 0;
    for (int i = threadIdx.x; i < wide; i += {threads}) {{
        const Wide part = reinterpret_cast<const Wide*>(x)[i];
        for (int j = 0; j < WIDE; ++j) {{
            const float value = (float)part.at[j];
            total += value * value;
        }}
    }}
    for (int i = wide * WIDE + threadIdx.x; i < count; i += {threads}) {{
        const float value = (float)x[i];
        total += value * value;
    }}
    for (int step = 16; step > 0; step /= 2) total += __shfl_down_sync(0xffffffff, total, step);
    __shared__ float warps[{threads} / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {{
        for (int i = 1; i < {threads} / 32; ++i) total += warps[i];
        out[chunk] = total;
    }}
"""

_JOIN = """
    T* y = out + offsets[array] + begin;
    const bool aligned = ((unsigned long long)x % 16 == 0) && ((unsigned long long)y % 16 == 0);
    const int wide = aligned ? count / WIDE : 0;
    for (int i = threadIdx.x; i < wide; i += {threads})
        reinterpret_cast<Wide*>(y)[i] = reinterpret_cast<const Wide*>(x)[i];
    for (int i = wide * WIDE + threadIdx.x; i < count; i += {threads}) y[i] = x[i];
"""


_BODIES = {"squares": _SQUARES, "join": _JOIN}


def serves(arrays: Sequence[mx.array]) -> bool:
    """Tell whether the kernels read these arrays here: on CUDA, floating-point, of one dtype, not empty."""
    return (
        hardware.on_cuda()
        and len(arrays) > 0
        and arrays[0].dtype in _DTYPES
        and all(x.dtype == arrays[0].dtype and x.size > 0 for x in arrays)
    )


def square_sums(arrays: Sequence[mx.array]) -> tuple[mx.array, list[int]]:
    """Return sums of squares over parts of the arrays, float32 in one vector, and the parts of each array.

    A part has 16,384 elements. Its sum has a relative error of at most some 1e-6. The sums can be
    differentiated and vmapped.
    """
    function: Any = _squares
    return function(*arrays), [_chunks(x.size) for x in arrays]


def joined(arrays: Sequence[mx.array]) -> mx.array:
    """Return `mx.concatenate` of the arrays as vectors; without a gradient."""
    return _by_groups("join", arrays, lambda some: sum(x.size for x in some))


@custom.custom_function
def _squares(*arrays: mx.array) -> mx.array:
    return _by_groups("squares", arrays, lambda some: sum(_chunks(x.size) for x in some))


@_squares.vjp
def _(primals: Any, cotangent: mx.array, _: mx.array) -> Any:
    found, begin = [], 0
    for x in (primals,) if isinstance(primals, mx.array) else primals:
        parts = _chunks(x.size)
        slopes = mx.broadcast_to(cotangent[begin : begin + parts, None], (parts, _CHUNK))
        slope = slopes.reshape(-1)[: x.size].reshape(x.shape)
        found.append((2 * slope * x.astype(mx.float32)).astype(x.dtype))
        begin += parts
    return tuple(found)


@_squares.vmap
def _(arrays: Any, axes: Any) -> Any:
    count = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    found = []
    for x, axis in zip(arrays, axes, strict=True):
        rows = x.reshape(1, -1) if axis is None else mx.moveaxis(x, axis, 0).reshape(count, -1)
        padded = mx.pad(mx.square(rows.astype(mx.float32)), [(0, 0), (0, -rows.shape[1] % _CHUNK)])
        parts = padded.reshape(rows.shape[0], -1, _CHUNK).sum(-1)
        found.append(mx.broadcast_to(parts, (count, parts.shape[1])))
    return mx.concatenate(found, axis=1), 0


def _by_groups(
    name: str, arrays: Sequence[mx.array], length: Callable[[Sequence[mx.array]], int]
) -> mx.array:
    groups = [arrays[begin : begin + _MOST] for begin in range(0, len(arrays), _MOST)]
    found = [_launched(name, some, (length(some),)) for some in groups]
    return found[0] if len(found) == 1 else mx.concatenate(found)


def _launched(name: str, arrays: Sequence[mx.array], shape: tuple[int, ...]) -> mx.array:
    dtype: mx.Dtype = arrays[0].dtype
    out = mx.float32 if name == "squares" else dtype
    if custom.is_capturing():
        return custom.opaque("CustomKernel", list(arrays), [(shape, out)])[0]
    places, sizes, offsets = _tables(tuple(x.size for x in arrays))
    kernel: Any = _kernel(name, len(arrays))
    return kernel(
        inputs=[places, sizes, *([offsets] if name == "join" else []), *arrays],
        template=[("T", dtype)],
        grid=(places.shape[0] * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[out],
    )[0]


@functools.cache
def _kernel(name: str, count: int) -> Any:
    names = [f"x{index}" for index in range(count)]
    cases = "\n".join(f"        case {index}: x = {each}; break;" for index, each in enumerate(names))
    return mx.fast.cuda_kernel(
        name=f"purestep_{name}_{count}",
        input_names=["places", "sizes", *(["offsets"] if name == "join" else []), *names],
        output_names=["out"],
        source=(_FIND + _BODIES[name]).format(chunk=_CHUNK, threads=_THREADS, cases=cases),
    )


def _chunks(size: int) -> int:
    return -(-size // _CHUNK)


def _tables(sizes: tuple[int, ...]) -> tuple[mx.array, mx.array, mx.array]:
    """Return the array and the part of each block, the sizes of the arrays, and where they begin."""
    places = [[index, part] for index, size in enumerate(sizes) for part in range(_chunks(size))]
    offsets, begin = [], 0
    for size in sizes:
        offsets.append(begin)
        begin += size
    return mx.array(places, mx.int32), mx.array(sizes, mx.int64), mx.array(offsets, mx.int64)
