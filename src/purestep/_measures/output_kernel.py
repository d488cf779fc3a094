"""The sums of `activations` on an NVIDIA GPU: one kernel that reads an output and its input once."""

import functools
from typing import Any

import mlx.core as mx

from purestep._core import checks, cuda
from purestep._core.tracing import custom

_THREADS = 256
_ROWS = 16  # rows of one block: it writes the number of large elements of each unit among them
_MOST = 1 << 21  # such numbers that are kept until many layers are finished together
_DTYPES = (mx.float32, mx.bfloat16, mx.float16)

# A thread adds the elements of its columns for each row; then the threads add these sums in shared memory.
SOURCE = """
    constexpr int LANES = {threads} / {rows};
    const int thread = threadIdx.x;
    const long long first = (long long)blockIdx.x * {rows};
    __shared__ float held[{rows} * {threads}];
    auto left = [&](long long rows) {{
        return rows - first < 0 ? 0 : rows - first < {rows} ? (int)(rows - first) : {rows};
    }};
    auto added = [&](float value) {{
        __syncthreads();
        held[thread] = value;
        __syncthreads();
        for (int step = {threads} / 2; step > 0; step /= 2) {{
            if (thread < step) held[thread] += held[thread + step];
            __syncthreads();
        }}
        return held[0];
    }};
    float square[{rows}];
    // The sum of the norms of the rows, from each thread's squares.
    auto norms = [&]() {{
        __syncthreads();
        for (int row = 0; row < {rows}; ++row) held[row * {threads} + thread] = square[row];
        __syncthreads();
        float part = 0;
        const int lane = thread % LANES;
        for (int i = lane; i < {threads}; i += LANES) part += held[thread / LANES * {threads} + i];
        __syncthreads();
        held[thread] = part;
        __syncthreads();
        float whole = 0;
        if (lane == 0)
            for (int i = 0; i < LANES; ++i) whole += held[thread + i];
        return added(sqrtf(whole));
    }};
    const int rows = left(x_shape[0]);
    const int width = x_shape[1];
    const float bound = eps[0];
    float sum = 0;
    for (int row = 0; row < {rows}; ++row) square[row] = 0;
    for (int column = thread; column < width; column += {threads}) {{
        int count = 0;
        for (int row = 0; row < {rows}; ++row) {{
            if (row < rows) {{
                const float value = (float)x[(first + row) * width + column];
                square[row] += value * value;
                sum += value;
                count += fabsf(value) <= bound ? 0 : 1;
            }}
        }}
        large[(long long)blockIdx.x * width + column] = (C)(float)count;
    }}
    const float out_norms = norms();
    const float total = added(sum);
    {given}
    if (thread == 0) {{
        float* mine = totals + (long long)blockIdx.x * {columns};
        mine[0] = (float)rows;
        mine[1] = out_norms;
        mine[2] = total;
        {written}
    }}
"""
GIVEN = """
    const int given_rows = left(y_shape[0]);
    const int given_width = y_shape[1];
    for (int row = 0; row < {rows}; ++row) square[row] = 0;
    for (int column = thread; column < given_width; column += {threads}) {{
        for (int row = 0; row < {rows}; ++row) {{
            if (row < given_rows) {{
                const float value = (float)y[(first + row) * given_width + column];
                square[row] += value * value;
            }}
        }}
    }}
    const float given_norms = norms();
"""


def serves(*arrays: mx.array) -> bool:
    """Tell whether the kernel reads these arrays: in a compiled step on CUDA."""
    return cuda.usable() and all(x.dtype in _DTYPES and x.size > 0 and x.ndim > 0 for x in arrays)


def statistics(out: mx.array, given: mx.array | None, eps: float) -> dict[str, mx.array]:
    """Return sums over parts of 16 rows, as `activations.statistics`."""
    arrays = [x.reshape(-1, x.shape[-1]) for x in (out, given) if x is not None]
    parts = max(-(-x.shape[0] // _ROWS) for x in arrays)
    shapes = [(parts, 2 + len(arrays)), (parts, out.shape[-1])]
    if custom.is_capturing():
        forms = list(zip(shapes, (mx.float32, mx.float16), strict=True))
        totals, large = custom.opaque("CustomKernel", arrays, forms)
    else:
        totals, large = _launched(eps, shapes)(*arrays)
    if large.size > _MOST:
        large = large.astype(mx.float32).sum(axis=0, keepdims=True)
    return {"totals": totals, "large": large}


def _launched(eps: float, shapes: list[tuple[int, int]]) -> Any:
    """Return the function that starts the kernel; it has no gradient."""

    def launch(*arrays: mx.array) -> list[mx.array]:
        return _kernel(len(arrays) > 1)(
            inputs=[mx.array([eps], mx.float32), *arrays],
            template=[("T", arrays[0].dtype), ("S", arrays[-1].dtype), ("C", mx.float16)],
            grid=(shapes[0][0] * _THREADS, 1, 1),
            threadgroup=(_THREADS, 1, 1),
            output_shapes=shapes,
            output_dtypes=[mx.float32, mx.float16],
        )

    function: Any = custom.custom_function(launch)

    @function.vmap
    def _(inputs: Any, axes: Any) -> Any:
        raise checks.error(
            "activations",
            "a layer runs under mx.vmap within the loss function; call it with the whole batch",
        )

    return function


@functools.cache
def _kernel(given: bool) -> Any:
    return mx.fast.cuda_kernel(
        name=f"purestep_outputs_{2 if given else 1}",
        input_names=["eps", "x", *(["y"] if given else [])],
        output_names=["totals", "large"],
        source=source(given),
    )


def source(given: bool) -> str:
    """Return the body of the kernel, with or without an input `y` beside the output `x`."""
    sizes = {"threads": _THREADS, "rows": _ROWS}
    return SOURCE.format(
        columns=3 + given,
        given=GIVEN.format(**sizes) if given else "",
        written="mine[3] = given_norms;" if given else "",
        **sizes,
    )
