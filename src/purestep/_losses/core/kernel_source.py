"""The source of the kernel of cross entropies and their gradients, for CUDA and Metal.

The sources differ only in a few names. A row is read for its largest logit and its sum of exponentials, and
again for the gradient: from shared memory where two rows fit, and otherwise mostly from the cache of the GPU.
"""

from string import Template
from typing import NamedTuple

# A thread has `WIDE` logits at a time: neighbours if the length of a row allows it, so that 16 bytes are read
# at once, and otherwise such that the threads read neighbours.
_SOURCE = Template("""
    constexpr int WIDE = 16 / sizeof(T);
    constexpr int WARPS = THREADS / 32;
    constexpr int TURNS = (N + THREADS * WIDE - 1) / (THREADS * WIDE);
    constexpr bool WHOLE = N % WIDE == 0;
    constexpr bool SMOOTHED = ${smoothing} != 0;
    constexpr float E = 1.44269504f;
    struct alignas(16) Wide { T at[WIDE]; };
    #define PURESTEP_AT(n, j) \\
        (WHOLE ? ((n) * THREADS + thread) * WIDE + (j) : ((n) * WIDE + (j)) * THREADS + thread)
    $kept
    $shared float tops[32];
    $shared float totals[32];
    $shared float plains[32];
    const int thread = $thread;
    const int row = $row;
    const $space T* from = logits + (size_t)row * N;
    $space T* to = $written;
    const float factor = factors[row];
    const int target = targets[row];
    const T aimed = thread == 0 ? from[target] : (T)0.0f;  // before it may be overwritten
    $ordered
    if (factor == 0) {
        for (int i = thread; i < N; i += THREADS) to[i] = (T)0.0f;
        if (thread == 0) losses[row] = 0;
        return;
    }
    float offset = 0;
    if (SMOOTHED) {
        // The mean of the logits is that of differences to one of them: a common offset costs no digits.
        constexpr int j = 0;
        float x[1] = {(float)from[target]};
        $capped
        if (isfinite(x[j])) offset = x[j];
    }
    float top = -3.4028235e38f, total = 0, plain = 0;
    for (int n = 0; n < TURNS; ++n) {
        float x[WIDE];
        Wide part;
        if (WHOLE) {
            if (PURESTEP_AT(n, 0) < N) {
                part = *reinterpret_cast<const $space Wide*>(from + PURESTEP_AT(n, 0));
                $keep
            }
        } else {
            for (int j = 0; j < WIDE; ++j)
                if (PURESTEP_AT(n, j) < N) part.at[j] = from[PURESTEP_AT(n, j)];
        }
        float most = top;
        for (int j = 0; j < WIDE; ++j) {
            const bool real = PURESTEP_AT(n, j) < N;
            x[j] = (float)part.at[j];
            $capped
            if (SMOOTHED && real) plain += x[j] - offset;
            if (!real) x[j] = -INFINITY;
            most = x[j] > most ? x[j] : most;
        }
        total *= $exp2((top - most) * E);
        for (int j = 0; j < WIDE; ++j) total += $exp2((x[j] - most) * E);
        top = most;
    }
    // The sums over a warp, and then, by each warp for itself, over the warps.
    for (int turn = 0; turn < 2; ++turn) {
        float most = top;
        for (int step = 16; step > 0; step /= 2) {
            const float other = $shuffle(most, step);
            most = other > most ? other : most;
        }
        total *= $exp2((top - most) * E);
        top = most;
        for (int step = 16; step > 0; step /= 2) {
            total += $shuffle(total, step);
            plain += $shuffle(plain, step);
        }
        if (turn == 0) {
            if (thread % 32 == 0) {
                tops[thread / 32] = top;
                totals[thread / 32] = total;
                plains[thread / 32] = plain;
            }
            $barrier;
            const int lane = thread % 32;
            top = lane < WARPS ? tops[lane] : -3.4028235e38f;
            total = lane < WARPS ? totals[lane] : 0;
            plain = lane < WARPS ? plains[lane] : 0;
        }
    }
    const float normalizer = $log(total) + top;
    const float scale = factor * (1 + 2 * ${z_loss} * normalizer) / total;
    const float even = factor * ${smoothing} / N, one = factor * (1 - ${smoothing});
    if (thread == 0) {
        constexpr int j = 0;
        float x[1] = {(float)aimed};
        $capped
        float loss = $log(total) - (1 - ${smoothing}) * (x[j] - top) + ${z_loss} * normalizer * normalizer;
        if (SMOOTHED) loss -= ${smoothing} * (plain / N + (offset - top));
        losses[row] = loss;
    }
    for (int n = 0; n < TURNS; ++n) {
        if (PURESTEP_AT(n, 0) >= N) break;
        Wide part;
        if (WHOLE) part = $again;
        else for (int j = 0; j < WIDE; ++j)
            if (PURESTEP_AT(n, j) < N) part.at[j] = from[PURESTEP_AT(n, j)];
        for (int j = 0; j < WIDE; ++j) {
            float x[WIDE];
            x[j] = (float)part.at[j];
            $capped
            float value = $exp2((x[j] - top) * E) * scale - even;
            if (PURESTEP_AT(n, j) == target) value -= one;
            $uncapped
            part.at[j] = (T)value;
        }
        if (WHOLE) *reinterpret_cast<$space Wide*>(to + PURESTEP_AT(n, 0)) = part;
        else for (int j = 0; j < WIDE; ++j)
            if (PURESTEP_AT(n, j) < N) to[PURESTEP_AT(n, j)] = part.at[j];
    }
    #undef PURESTEP_AT
""")

# What the readers of the gradient read too: they are computed after it.
_ORDERED = """
    for (int i = thread; i < FEATURES; i += THREADS) {
        if (row == 0) zeros[i] = (T)0.0f;
        copy[(size_t)row * FEATURES + i] = hidden[(size_t)row * FEATURES + i];
    }
"""

_CUDA = {
    "shared": "__shared__",
    "space": "",
    "thread": "threadIdx.x",
    "row": "blockIdx.x",
    "exp2": "purestep_exp2",
    "log": "logf",
    "tanh": "tanhf",
    "barrier": "__syncthreads()",
    "shuffle": "PURESTEP_SHUFFLE",
}
CUDA_HEADER = """
#define PURESTEP_SHUFFLE(value, step) __shfl_xor_sync(0xffffffff, value, step)
__device__ inline float purestep_exp2(float x) {
    float y;  // with a relative error of 2^-22; exp2f takes four instructions
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
"""
_METAL = {
    "shared": "threadgroup",
    "space": "device",
    "thread": "thread_position_in_threadgroup.x",
    "row": "threadgroup_position_in_grid.x",
    "exp2": "metal::fast::exp2",
    "log": "metal::precise::log",
    "tanh": "metal::precise::tanh",
    "barrier": "threadgroup_barrier(mem_flags::mem_threadgroup)",
    "shuffle": "simd_shuffle_xor",
}


class Form(NamedTuple):
    """The loss of one token as a function of its logits, by arguments of `linear_cross_entropy`."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None


def source(form: Form, *, metal: bool = False, kept: bool = False, over: bool = False) -> str:
    """Return the body of the kernel.

    Args:
        form: the loss.
        metal: for Metal, and otherwise for CUDA.
        kept: it keeps a row in shared memory; on CUDA.
        over: it writes the gradient over the logits; on CUDA.
    """
    words, capped, uncapped = _METAL if metal else _CUDA, "", ""
    if form.soft_cap is not None:
        cap = f"{float(form.soft_cap)!r}f"
        capped = f"x[j] = {cap} * {words['tanh']}(x[j] / {cap});"
        uncapped = f"value *= 1 - (x[j] / {cap}) * (x[j] / {cap});"
    again = f"*reinterpret_cast<const {words['space']} Wide*>(from + PURESTEP_AT(n, 0))"
    return _SOURCE.substitute(
        words,
        capped=capped,
        uncapped=uncapped,
        smoothing=f"{float(form.label_smoothing)!r}f",
        z_loss=f"{float(form.z_loss)!r}f",
        kept="extern __shared__ float4 row_memory[]; Wide* mine = reinterpret_cast<Wide*>(row_memory);"
        if kept
        else "",
        keep="mine[n * THREADS + threadIdx.x] = part;" if kept else "",
        again="mine[n * THREADS + threadIdx.x]" if kept else again,
        written="const_cast<T*>(from)" if over else "slope + (size_t)row * N",
        ordered=_ORDERED if over else "",
    )
