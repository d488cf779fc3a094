"""The CUDA source of the kernels in `norms`, to be filled in by `str.format`.

A row has `N` elements and `TEAM` threads, each of which holds `PARTS` pieces of 16 bytes. A block has
`TEAMS` rows at a time.
"""

COMMON = """
    constexpr int WIDE = 16 / sizeof(T);
    constexpr int TEAMS = THREADS / TEAM;
    constexpr int WARPS = THREADS / 32;
    struct alignas(16) Wide {{ T at[WIDE]; }};
    const int lane = threadIdx.x % TEAM;
    const int team = threadIdx.x / TEAM;
    {rows}
    auto wide = [&](const T* row, int place) {{
        if ((unsigned long long)row % 16 == 0) return reinterpret_cast<const Wide*>(row)[place];
        Wide part;
        for (int j = 0; j < WIDE; ++j) part.at[j] = row[place * WIDE + j];
        return part;
    }};
    auto added = [&](float value) {{
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
        return value;
    }};
    // The sums of two values over the threads of a row. Every thread of a block calls it. A buffer may be
    // used again after a call with another one.
    __shared__ float halves[2][2][WARPS];
    auto both = [&](float& a, float& b, int buffer) {{
        a = added(a);
        b = added(b);
        if (TEAM > 32) {{
            if (threadIdx.x % 32 == 0) {{
                halves[buffer][0][threadIdx.x / 32] = a;
                halves[buffer][1][threadIdx.x / 32] = b;
            }}
            __syncthreads();
            a = 0;
            b = 0;
            for (int i = 0; i < TEAM / 32; ++i) {{
                a += halves[buffer][0][team * (TEAM / 32) + i];
                b += halves[buffer][1][team * (TEAM / 32) + i];
            }}
        }}
    }};
"""

FORWARD = """
    // Threads without a row of their own read the last one: all threads of a block meet in `both`.
    const int own = blockIdx.x * TEAMS + team;
    const int row = own < rows ? own : rows - 1;
    float xs[PARTS * WIDE];
    float total = 0, square = 0, unused = 0;
    for (int p = 0; p < PARTS; ++p) {{
        const int place = p * TEAM + lane;
        if (place < N / WIDE) {{
            const Wide part = wide(x + (long long)row * N, place);
            for (int j = 0; j < WIDE; ++j) {{
                xs[p * WIDE + j] = (float)part.at[j];
                total += xs[p * WIDE + j];
            }}
        }}
    }}
    float mean = 0;
    if (CENTERED) {{
        both(total, unused, 0);
        mean = total / N;
    }}
    for (int p = 0; p < PARTS; ++p)
        if (p * TEAM + lane < N / WIDE)
            for (int j = 0; j < WIDE; ++j) {{
                xs[p * WIDE + j] -= mean;
                square += xs[p * WIDE + j] * xs[p * WIDE + j];
            }}
    both(square, unused, 1);
    const float scale = rsqrtf(square / N + {eps}f);
    if (own < rows) {{
        Wide* to = reinterpret_cast<Wide*>(out + (long long)row * N);
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place < N / WIDE) {{
                Wide part;
                for (int j = 0; j < WIDE; ++j) {{
                    float value = xs[p * WIDE + j] * scale;
                    {weighted}
                    part.at[j] = (T)value;
                }}
                to[place] = part;
            }}
        }}
        if (lane == 0) {{
            stats[2 * row] = mean;
            stats[2 * row + 1] = scale;
        }}
    }}
"""

BACKWARD = """
    float for_weight[PARTS * WIDE], for_bias[PARTS * WIDE];
    for (int i = 0; i < PARTS * WIDE; ++i) {{
        for_weight[i] = 0;
        for_bias[i] = 0;
    }}
    Wide next_x[PARTS], next_slope[PARTS];
    auto fetch = [&](int row) {{
        row = row < rows ? row : rows - 1;
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place < N / WIDE) {{
                next_x[p] = wide(x + (long long)row * N, place);
                next_slope[p] = wide(slope + (long long)row * N, place);
            }}
        }}
    }};
    const int stride = gridDim.x * TEAMS;
    int buffer = 0;
    fetch(blockIdx.x * TEAMS + team);
    for (int begin = blockIdx.x * TEAMS; begin < rows; begin += stride) {{
        const int own = begin + team;
        const bool real = own < rows;
        const int row = real ? own : rows - 1;
        const float middle = stats[2 * row], scale = stats[2 * row + 1];
        float xs[PARTS * WIDE], slopes[PARTS * WIDE];
        float mean = 0, along = 0;
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place < N / WIDE) {{
                for (int j = 0; j < WIDE; ++j) {{
                    const int i = p * WIDE + j;
                    xs[i] = ((float)next_x[p].at[j] - middle) * scale;
                    float value = (float)next_slope[p].at[j];
                    if (real) {{
                        for_weight[i] += value * xs[i];
                        for_bias[i] += value;
                    }}
                    {weighted}
                    slopes[i] = value;
                    mean += value;
                    along += value * xs[i];
                }}
            }}
        }}
        if (begin + stride < rows) fetch(begin + stride + team);
        both(mean, along, buffer);
        buffer = 1 - buffer;
        mean = CENTERED ? mean / N : 0;
        along /= N;
        if (real) {{
            Wide* to = reinterpret_cast<Wide*>(for_x + (long long)row * N);
            for (int p = 0; p < PARTS; ++p) {{
                const int place = p * TEAM + lane;
                if (place < N / WIDE) {{
                    Wide part;
                    for (int j = 0; j < WIDE; ++j) {{
                        const int i = p * WIDE + j;
                        part.at[j] = (T)(scale * (slopes[i] - mean - xs[i] * along));
                    }}
                    to[place] = part;
                }}
            }}
        }}
    }}
"""

WRITTEN = """
    __shared__ float sums[TEAMS > 1 ? TEAMS * N : 1];
    auto write = [&](float* mine, float* to) {{
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place >= N / WIDE) continue;
            for (int j = 0; j < WIDE; ++j) {{
                const int column = place * WIDE + j;
                if (TEAMS == 1) to[column] = mine[p * WIDE + j];
                else sums[team * N + column] = mine[p * WIDE + j];
            }}
        }}
        if (TEAMS == 1) return;
        __syncthreads();
        for (int i = threadIdx.x; i < N; i += THREADS) {{
            float whole = 0;
            for (int t = 0; t < TEAMS; ++t) whole += sums[t * N + i];
            to[i] = whole;
        }}
        __syncthreads();
    }};
    float* mine = parts + (long long)blockIdx.x * KINDS * N;
    {written}
"""
