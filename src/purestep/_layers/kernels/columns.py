"""Sums of the columns of a matrix on an NVIDIA GPU, in float32: the gradient of a bias."""

import functools
from typing import Any

import mlx.core as mx

from purestep._core import cuda
from purestep._core.tracing import custom

THREADS = 256
DTYPES = (mx.float32, mx.bfloat16, mx.float16)
_ADDING = 1024  # threads of the blocks that add rows
_BLOCKS = 264  # of them that run at a time: two for each multiprocessor of an H100
_UNROLLED = 8  # rows that a thread reads before it adds them

# An array of any number of axes is read as a matrix: an operation that reshapes it would take host time.
ROWS = "int rows = 1; for (int axis = 0; axis + 1 < {x}_ndim; ++axis) rows *= {x}_shape[axis];"
_SUM = """
    constexpr int WIDE = 16 / sizeof(T);
    constexpr int WARPS = THREADS / 32;
    struct alignas(16) Wide { T at[WIDE]; };
    $ROWS
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int place = blockIdx.x * 32 + lane;
    float total[WIDE];
    for (int j = 0; j < WIDE; ++j) total[j] = 0;
    if (place < N / WIDE) {
        const bool aligned = (unsigned long long)x % 16 == 0;
        #pragma unroll UNROLLED
        for (int row = blockIdx.y * WARPS + warp; row < rows; row += gridDim.y * WARPS) {
            const T* from = x + (long long)row * N + place * WIDE;
            Wide part;
            if (aligned) part = *reinterpret_cast<const Wide*>(from);
            else for (int j = 0; j < WIDE; ++j) part.at[j] = from[j];
            for (int j = 0; j < WIDE; ++j) total[j] += (float)part.at[j];
        }
    }
    __shared__ float sums[WARPS][32 * WIDE + 1];
    for (int j = 0; j < WIDE; ++j) sums[warp][lane * WIDE + j] = total[j];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * WIDE; i += THREADS) {
        const int column = blockIdx.x * 32 * WIDE + i;
        float whole = 0;
        for (int w = 0; w < WARPS; ++w) whole += sums[w][i];
        if (column < N) parts[(long long)blockIdx.y * N + column] = whole;
    }
"""

_ENDED = """
    const int column = blockIdx.x * 32 + threadIdx.x % 32;
    const int first = threadIdx.x / 32;
    const int rows = parts_shape[0];
    __shared__ float sums[8][33];
    float total[4] = {{0, 0, 0, 0}};
    if (column < KINDS * N)
        for (int row = first; row < rows; row += 32)
            for (int i = 0; i < 4; ++i)
                if (row + 8 * i < rows) total[i] += parts[(long long)(row + 8 * i) * KINDS * N + column];
    float whole = (total[0] + total[1]) + (total[2] + total[3]);
    sums[first][threadIdx.x % 32] = whole;
    __syncthreads();
    if (first == 0 && column < KINDS * N) {{
        for (int i = 1; i < 8; ++i) whole += sums[i][threadIdx.x % 32];
        {ended}
    }}
"""


def serves(x: mx.array) -> bool:
    """Tell whether `column_sums` adds the rows of this array here."""
    return (
        cuda.usable()
        and x.dtype in DTYPES
        and x.size > 0
        and x.ndim > 0
        and x.shape[-1] % (16 // x.dtype.size) == 0
    )


def column_sums(x: mx.array) -> mx.array:
    """Return the sums over all axes but the last, added in float32, in the dtype of `x`."""
    width = x.shape[-1]
    if custom.is_capturing():
        return custom.opaque("CustomKernel", [x], [((width,), x.dtype)])[0]
    rows, wide = x.size // width, 16 // x.dtype.size
    across = -(-width // (32 * wide))
    down = min(max(1, _BLOCKS // across), -(-rows // (_ADDING // 32)))
    parts = _sum()(
        inputs=[x],
        template=[("T", x.dtype), ("N", width), ("THREADS", _ADDING), ("UNROLLED", _UNROLLED)],
        grid=(across * _ADDING, down, 1),
        threadgroup=(_ADDING, 1, 1),
        output_shapes=[(down, width)],
        output_dtypes=[mx.float32],
    )[0]
    return ended(parts, 1, width, x.dtype)[0]


def ended(parts: mx.array, kinds: int, width: int, dtype: mx.Dtype) -> list[mx.array]:
    """Return the sums of the columns of `parts`, float32 [rows, kinds * width], as `kinds` vectors."""
    return _ended(kinds)(
        inputs=[parts],
        template=[("T", dtype), ("N", width), ("KINDS", kinds)],
        grid=(-(-kinds * width // 32) * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(width,)] * kinds,
        output_dtypes=[dtype] * kinds,
    )


@functools.cache
def _sum() -> Any:
    return mx.fast.cuda_kernel(
        name="purestep_column_sums",
        input_names=["x"],
        output_names=["parts"],
        source=_SUM.replace("$ROWS", ROWS.format(x="x")),
    )


@functools.cache
def _ended(kinds: int) -> Any:
    names = [f"out{index}" for index in range(kinds)]
    written = [f"if (column / N == {i}) {name}[column % N] = (T)whole;" for i, name in enumerate(names)]
    return mx.fast.cuda_kernel(
        name=f"purestep_columns_ended_{kinds}",
        input_names=["parts"],
        output_names=names,
        source=_ENDED.format(ended=" ".join(written)),
    )
