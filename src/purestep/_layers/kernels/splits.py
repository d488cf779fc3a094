"""The gradient of a split along the last axis on an NVIDIA GPU: one kernel writes all parts side by side."""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import cuda
from purestep._core.tracing import custom
from purestep._layers.kernels.columns import DTYPES, ROWS

_THREADS = 256
_MOST = 8  # parts

_SOURCE = """
    constexpr int WIDE = 16 / sizeof(T);
    struct alignas(16) Wide {{ T at[WIDE]; }};
    const unsigned int at = blockIdx.x * {threads}u + threadIdx.x;
    const unsigned int row = at / (N / WIDE);
    const int place = (int)(at % (N / WIDE)) * WIDE;
    {rows}
    if (row >= rows) return;
    const T* from;
    {parts}
    Wide part;
    if ((unsigned long long)from % 16 == 0) part = *reinterpret_cast<const Wide*>(from);
    else for (int j = 0; j < WIDE; ++j) part.at[j] = from[j];
    reinterpret_cast<Wide*>(out)[at] = part;
"""


def serves(x: mx.array, widths: Sequence[int]) -> bool:
    """Tell whether `joined` computes the gradient of a split of this array into these widths here."""
    wide = 16 // x.dtype.size
    return (
        cuda.usable()
        and x.dtype in DTYPES
        and 0 < x.size < 2**32
        and 1 < len(widths) <= _MOST
        and all(width > 0 and width % wide == 0 for width in widths)
    )


def joined(parts: Sequence[mx.array]) -> mx.array:
    """Return `mx.concatenate(parts, axis=-1)` for parts of one dtype, as `serves` accepts them."""
    widths = tuple(part.shape[-1] for part in parts)
    shape = (*parts[0].shape[:-1], sum(widths))
    if custom.is_capturing():
        return custom.opaque("CustomKernel", list(parts), [(shape, parts[0].dtype)])[0]
    pieces = parts[0].size // widths[0] * shape[-1] // (16 // parts[0].dtype.size)
    return _kernel(widths)(
        inputs=list(parts),
        template=[("T", parts[0].dtype), ("N", shape[-1])],
        grid=(-(-pieces // _THREADS) * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[parts[0].dtype],
    )[0]


@functools.cache
def _kernel(widths: tuple[int, ...]) -> Any:
    begin, cases = 0, []
    for index, width in enumerate(widths):
        condition = f"if (place < {begin + width})" if index < len(widths) - 1 else ""
        cases.append(f"{condition} from = x{index} + (long long)row * {width} + place - {begin};")
        begin += width
    names = [f"x{index}" for index in range(len(widths))]
    return mx.fast.cuda_kernel(
        name="purestep_joined_" + "_".join(map(str, widths)),
        input_names=names,
        output_names=["out"],
        source=_SOURCE.format(rows=ROWS.format(x="x0"), threads=_THREADS, parts="\n    else ".join(cases)),
    )
