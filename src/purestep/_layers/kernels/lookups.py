"""The gradient of a lookup on an NVIDIA GPU: for each row of the table, the sum over its places, in float32.

MLX adds the rows of the cotangent one by one to a table of zeros, in an order that varies. Here the places
are sorted by their row, and each row of the result is written once: the same bits in every run.
"""

import functools
from typing import Any

import mlx.core as mx

from purestep._core import cuda
from purestep._core.tracing import custom
from purestep._layers.kernels.columns import DTYPES

_THREADS = 256
_PLACES = 128  # for each row on average

# A warp finds the places of its row in the sorted list. It adds up to `ALONE` of them by itself; the rows of
# more places are added by all warps of the block.
_SOURCE = """
    constexpr int WIDE = 16 / sizeof(T);
    constexpr int WARPS = THREADS / 32;
    constexpr int ALONE = 8;
    constexpr int NEEDED = (N / WIDE + 31) / 32;
    constexpr int GROUPS = NEEDED < 4 ? NEEDED : 4;
    struct alignas(16) Wide { T at[WIDE]; };
    __shared__ int bounds[WARPS + 1];
    __shared__ float sums[WARPS][32 * WIDE * GROUPS];
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int places = keys_shape[0];
    const int first = blockIdx.x * WARPS;
    const bool aligned = (unsigned long long)slope % 16 == 0;
    // The first place whose key is at least `key`; each turn reads 32 keys.
    auto find = [&](int key) {
        int low = 0, count = places;
        while (count > 0) {
            const int end = low + count, step = (count + 31) / 32;
            const int probe = low + (lane + 1) * step - 1;
            const bool less = probe < end && keys[probe] < key;
            low += __popc(__ballot_sync(0xffffffff, less)) * step;
            count = min(step - 1, end - low);
        }
        return low;
    };
    const int low = find(first + warp);
    if (lane == 0) bounds[warp] = low;
    if (warp == WARPS - 1) {
        const int high = find(first + WARPS);
        if (lane == 0) bounds[WARPS] = high;
    }
    __syncthreads();
    float total[GROUPS][WIDE];
    // The sums of some places of a row, in `GROUPS` x 32 pieces of 16 bytes from `begin` on.
    auto add = [&](int from, int to, int stride, int begin) {
        for (int g = 0; g < GROUPS; ++g)
            for (int j = 0; j < WIDE; ++j) total[g][j] = 0;
        #pragma unroll 4
        for (int i = from; i < to; i += stride) {
            const T* row = slope + (long long)order[i] * N;
            for (int g = 0; g < GROUPS; ++g) {
                const int place = begin + 32 * g + lane;
                if (place >= N / WIDE) continue;
                Wide part;
                if (aligned) part = reinterpret_cast<const Wide*>(row)[place];
                else for (int j = 0; j < WIDE; ++j) part.at[j] = row[place * WIDE + j];
                for (int j = 0; j < WIDE; ++j) total[g][j] += (float)part.at[j];
            }
        }
    };
    auto write = [&](int row, int begin) {
        for (int g = 0; g < GROUPS; ++g) {
            const int place = begin + 32 * g + lane;
            if (place >= N / WIDE) continue;
            Wide part;
            for (int j = 0; j < WIDE; ++j) part.at[j] = (T)total[g][j];
            reinterpret_cast<Wide*>(out + (long long)row * N)[place] = part;
        }
    };
    if (first + warp < ROWS && bounds[warp + 1] - low <= ALONE)
        for (int begin = 0; begin < N / WIDE; begin += 32 * GROUPS) {
            add(low, bounds[warp + 1], 1, begin);
            write(first + warp, begin);
        }
    for (int mine = 0; mine < WARPS && first + mine < ROWS; ++mine) {
        const int from = bounds[mine], to = bounds[mine + 1];
        if (to - from <= ALONE) continue;
        for (int begin = 0; begin < N / WIDE; begin += 32 * GROUPS) {
            add(from + warp, to, WARPS, begin);
            for (int g = 0; g < GROUPS; ++g)
                for (int j = 0; j < WIDE; ++j) sums[warp][(g * WIDE + j) * 32 + lane] = total[g][j];
            __syncthreads();
            if (warp == 0) {
                for (int other = 1; other < WARPS; ++other)
                    for (int g = 0; g < GROUPS; ++g)
                        for (int j = 0; j < WIDE; ++j) total[g][j] += sums[other][(g * WIDE + j) * 32 + lane];
                write(first + mine, begin);
            }
            __syncthreads();
        }
    }
"""


def serves(table: mx.array, indices: mx.array) -> bool:
    """Tell whether `summed` computes the gradient of this lookup here.

    One block of the GPU adds all places of a row, which is slow for a small table with many places.
    """
    return (
        cuda.usable()
        and table.dtype in DTYPES
        and table.ndim == 2
        and table.size > 0
        and 0 < indices.size <= _PLACES * table.shape[0]
        and table.shape[1] % (16 // table.dtype.size) == 0
    )


def summed(slope: mx.array, indices: mx.array, rows: int) -> mx.array:
    """Return the sums of those rows of `slope` that have the same index.

    Args:
        slope: [..., width], with a table of this width and dtype as `serves` accepts it.
        indices: integers [...]; -1 is the last row. Others that are out of range are left out.
        rows: of the table.

    Returns:
        [rows, width] in the dtype of `slope`, added in float32.
    """
    width = slope.shape[-1]
    if custom.is_capturing():
        return custom.opaque("CustomKernel", [slope, indices], [((rows, width), slope.dtype)])[0]
    keys = indices.reshape(-1).astype(mx.int32)
    keys = mx.where(keys < 0, keys + rows, keys)
    order = mx.argsort(keys)
    return _kernel()(
        inputs=[keys[order], order, slope],
        template=[("T", slope.dtype), ("N", width), ("ROWS", rows), ("THREADS", _THREADS)],
        grid=(-(-rows // (_THREADS // 32)) * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(rows, width)],
        output_dtypes=[slope.dtype],
    )[0]


@functools.cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="purestep_summed_rows",
        input_names=["keys", "order", "slope"],
        output_names=["out"],
        source=_SOURCE,
    )
