"""Kernels for an NVIDIA GPU that read many arrays at once.

MLX runs a kernel for each array. For the hundreds of arrays of a model that costs more than the memory
traffic: a norm needs two kernels an array, and each square is written before it is added.
"""

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    const T* y = nullptr;
    switch (array) {{
{cases}
    }}
    const long long left = sizes[array] - begin;
    const int count = left < {chunk} ? (int)left : {chunk};
    constexpr int WIDE = 16 / sizeof(T);
    struct alignas(16) Wide {{ T at[WIDE]; }};
    x += begin;
"""

_SUM = """
    {second}
    float total = 0;
    const int wide = ({aligned}) ? count / WIDE : 0;
    for (int i = threadIdx.x; i < wide; i += {threads}) {{
        const Wide xs = reinterpret_cast<const Wide*>(x)[i];
        {wide_second}
        for (int j = 0; j < WIDE; ++j) {{
            const float value = (float)xs.at[j]{wide_minus};
            total += {term};
        }}
    }}
    for (int i = wide * WIDE + threadIdx.x; i < count; i += {threads}) {{
        const float value = (float)x[i]{minus};
        total += {term};
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

_ONE = {
    "second": "",
    "aligned": "(unsigned long long)x % 16 == 0",
    "wide_second": "",
    "wide_minus": "",
    "minus": "",
}
_TWO = {
    "second": "y += begin;",
    "aligned": "((unsigned long long)x | (unsigned long long)y) % 16 == 0",
    "wide_second": "const Wide ys = reinterpret_cast<const Wide*>(y)[i];",
    "wide_minus": " - (float)ys.at[j]",
    "minus": " - (float)y[i]",
}
_TERMS = {
    "squares": (1, "value * value"),
    "distances": (2, "value * value"),
    "zeros": (1, "value == 0.0f ? 1.0f : 0.0f"),
    "nonfinite": (1, "isfinite(value) ? 0.0f : 1.0f"),
}

_JOIN = """
    T* z = out + offsets[array] + begin;
    const bool aligned = ((unsigned long long)x % 16 == 0) && ((unsigned long long)z % 16 == 0);
    const int wide = aligned ? count / WIDE : 0;
    for (int i = threadIdx.x; i < wide; i += {threads})
        reinterpret_cast<Wide*>(z)[i] = reinterpret_cast<const Wide*>(x)[i];
    for (int i = wide * WIDE + threadIdx.x; i < count; i += {threads}) z[i] = x[i];
"""


_SCALE = """
    O* z = out + offsets[array] + begin;
    const float factor = scale[0];
    constexpr int BYTES = WIDE * sizeof(O);
    struct alignas(BYTES < 16 ? BYTES : 16) WideOut {{ O at[WIDE]; }};
    const bool aligned = ((unsigned long long)x % 16 == 0) && ((unsigned long long)z % alignof(WideOut) == 0);
    const int wide = aligned ? count / WIDE : 0;
    for (int i = threadIdx.x; i < wide; i += {threads}) {{
        const Wide xs = reinterpret_cast<const Wide*>(x)[i];
        WideOut zs;
        for (int j = 0; j < WIDE; ++j) zs.at[j] = (O)((float)xs.at[j] * factor);
        reinterpret_cast<WideOut*>(z)[i] = zs;
    }}
    for (int i = wide * WIDE + threadIdx.x; i < count; i += {threads}) z[i] = (O)((float)x[i] * factor);
"""
_JOINS = {"join": _JOIN, "scale": _SCALE}


class _Allowed(threading.local):
    def __init__(self) -> None:
        self.now = False


_allowed = _Allowed()


@contextmanager
def kernels(*, allow: bool = True) -> Iterator[None]:
    """Use own kernels within the `with` block, in this thread.

    A kernel of one's own cannot be vmapped, and a function cannot tell whether it runs within `mx.vmap`. So
    kernels are used where `compiled` traces a step, and nowhere else.
    """
    before, _allowed.now = _allowed.now, allow
    try:
        yield
    finally:
        _allowed.now = before


def allowed() -> bool:
    """Tell whether own kernels may be used here, if the device has them."""
    return (_allowed.now or custom.is_capturing()) and not custom.is_exporting()


def usable() -> bool:
    """Tell whether own CUDA kernels may be used here."""
    return allowed() and hardware.on_cuda()


def serves(arrays: Sequence[mx.array]) -> bool:
    """Tell whether the kernels read these arrays: in a compiled step on CUDA, of one floating-point dtype."""
    return (
        usable()
        and len(arrays) > 0
        and arrays[0].dtype in _DTYPES
        and all(x.dtype == arrays[0].dtype and x.size > 0 for x in arrays)
    )


def sums(kind: str, arrays: Sequence[mx.array]) -> tuple[mx.array, list[int]]:
    """Return sums over parts of the arrays, float32 in one vector, and the number of parts of each array.

    A part has 16,384 elements. Sums of squares have a relative error of at most some 1e-6, and can be
    differentiated.

    Args:
        kind: `"squares"`; `"distances"`, the squared differences of each array of the first half and its
            partner in the second; `"zeros"` or `"nonfinite"`, the number of such elements.
        arrays: as `serves` accepts them.
    """
    read = arrays[: len(arrays) // _TERMS[kind][0]]
    found = _squares(*arrays) if kind == "squares" else _summed(kind, arrays)
    return found, [_chunks(x.size) for x in read]


def joined(arrays: Sequence[mx.array]) -> mx.array:
    """Return `mx.concatenate` of the arrays as vectors; without a gradient."""
    return _one(
        [
            _launched("join", some, some, (sum(x.size for x in some),), arrays[0].dtype)
            for some in _groups(arrays)
        ]
    )


def joined_and_scaled(arrays: Sequence[mx.array], scale: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return `joined` times a number, computed in float32; without a gradient.

    Args:
        arrays: as `serves` accepts them.
        scale: float32, 0-d.
        dtype: of the result, a floating-point one.
    """
    return _one(
        [
            _launched("scale", some, [scale.reshape(1), *some], (sum(x.size for x in some),), dtype)
            for some in _groups(arrays)
        ]
    )


def _groups(arrays: Sequence[mx.array]) -> list[Sequence[mx.array]]:
    return [arrays[begin : begin + _MOST] for begin in range(0, len(arrays), _MOST)]


def _summed(kind: str, arrays: Sequence[mx.array]) -> mx.array:
    count = len(arrays) // _TERMS[kind][0]
    most = _MOST // _TERMS[kind][0]
    found = []
    for begin in range(0, count, most):
        read = arrays[begin : min(begin + most, count)]
        partners = arrays[count + begin : count + begin + len(read)] if count < len(arrays) else []
        found.append(_launched(kind, read, [*read, *partners], (sum(_chunks(x.size) for x in read),)))
    return _one(found)


def _one(found: list[mx.array]) -> mx.array:
    return found[0] if len(found) == 1 else mx.concatenate(found)


@custom.custom_function
def _squares(*arrays: mx.array) -> mx.array:
    return _summed("squares", arrays)


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


def _launched(
    name: str,
    read: Sequence[mx.array],
    arrays: Sequence[mx.array],
    shape: tuple[int, ...],
    out: mx.Dtype = mx.float32,
) -> mx.array:
    dtypes = [("T", read[0].dtype), ("O", out)]
    if custom.is_capturing():
        return custom.opaque("CustomKernel", list(arrays), [(shape, out)])[0]
    places, sizes, offsets = _tables(tuple(x.size for x in read))
    return _kernel(name, len(read))(
        inputs=[places, sizes, *([offsets] if name in _JOINS else []), *arrays],
        template=dtypes if name == "scale" else dtypes[:1],
        grid=(places.shape[0] * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[out],
    )[0]


@functools.cache
def _kernel(name: str, count: int) -> Any:
    pairs, term = _TERMS.get(name, (1, ""))
    names = [[f"{letter}{index}" for index in range(count)] for letter in "xy"[:pairs]]
    cases = "\n".join(
        f"        case {index}: " + " ".join(f"{each[0]} = {each};" for each in row) + " break;"
        for index, row in enumerate(zip(*names, strict=True))
    )
    more = {"join": ["offsets"], "scale": ["offsets", "scale"]}.get(name, [])
    return mx.fast.cuda_kernel(
        name=f"purestep_{name}_{count}",
        input_names=["places", "sizes", *more, *itertools.chain(*names)],
        output_names=["out"],
        source=(_FIND + _JOINS.get(name, _SUM)).format(
            chunk=_CHUNK, threads=_THREADS, cases=cases, term=term, **(_TWO if pairs == 2 else _ONE)
        ),
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
