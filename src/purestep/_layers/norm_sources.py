"""The CUDA source of the kernels in `norm_kernels`, to be filled in by `str.format`.

A row has `N` elements and `TEAM` threads, each of which holds `PARTS` pieces of 16 bytes.
"""

COMMON = """
    constexpr int WIDE = 16 / sizeof(T);
    constexpr int TEAMS = {threads} / TEAM;
    struct alignas(16) Wide {{ T at[WIDE]; }};
    const int lane = threadIdx.x % TEAM;
    const int team = threadIdx.x / TEAM;
    const int rows = x_shape[0];
    __shared__ float halves[2][{threads} / 32];
    auto added = [&](float value) {{
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
        return value;
    }};
    auto wide = [&](const T* row, int place) {{
        if ((unsigned long long)row % 16 == 0) return reinterpret_cast<const Wide*>(row)[place];
        Wide part;
        for (int j = 0; j < WIDE; ++j) part.at[j] = row[place * WIDE + j];
        return part;
    }};
    // The sums of two values over the threads of a row.
    auto both = [&](float& a, float& b) {{
        a = added(a);
        b = added(b);
        if (TEAM > 32) {{
            __syncthreads();
            if (threadIdx.x % 32 == 0) {{
                halves[0][threadIdx.x / 32] = a;
                halves[1][threadIdx.x / 32] = b;
            }}
            __syncthreads();
            a = 0;
            b = 0;
            for (int i = 0; i < {threads} / 32; ++i) {{
                a += halves[0][i];
                b += halves[1][i];
            }}
        }}
    }};
    // Reads a row; afterwards `xs` holds it, less its mean, and `scale` is 1 over its deviation.
    float xs[PARTS * WIDE];
    float scale = 0;
    auto read = [&](int row) {{
        const T* from = x + (long long)row * N;
        float total = 0, square = 0;
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place < N / WIDE) {{
                const Wide part = wide(from, place);
                for (int j = 0; j < WIDE; ++j) {{
                    xs[p * WIDE + j] = (float)part.at[j];
                    total += xs[p * WIDE + j];
                }}
            }}
        }}
        float unused = 0;
        if (CENTERED) {{
            both(total, unused);
            const float mean = total / N;
            for (int p = 0; p < PARTS; ++p)
                if (p * TEAM + lane < N / WIDE)
                    for (int j = 0; j < WIDE; ++j) xs[p * WIDE + j] -= mean;
        }}
        for (int p = 0; p < PARTS; ++p)
            if (p * TEAM + lane < N / WIDE)
                for (int j = 0; j < WIDE; ++j) square += xs[p * WIDE + j] * xs[p * WIDE + j];
        both(square, unused);
        scale = rsqrtf(square / N + {eps}f);
    }};
"""

FORWARD = """
    // Every thread of a block stays in the loop for as long as one of them has a row: they meet in `both`.
    const int row = blockIdx.x * TEAMS + team;
    read(row < rows ? row : rows - 1);
    if (row < rows) {{
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
    }}
"""

BACKWARD = """
    float for_weight[PARTS * WIDE], for_bias[PARTS * WIDE];
    for (int i = 0; i < PARTS * WIDE; ++i) {{
        for_weight[i] = 0;
        for_bias[i] = 0;
    }}
    for (int begin = blockIdx.x * TEAMS; begin < rows; begin += gridDim.x * TEAMS) {{
        const int row = begin + team;
        const bool real = row < rows;
        read(real ? row : rows - 1);
        const T* from = slope + (long long)(real ? row : rows - 1) * N;
        float slopes[PARTS * WIDE];
        float mean = 0, along = 0;
        for (int p = 0; p < PARTS; ++p) {{
            const int place = p * TEAM + lane;
            if (place < N / WIDE) {{
                const Wide part = wide(from, place);
                for (int j = 0; j < WIDE; ++j) {{
                    const int i = p * WIDE + j;
                    float value = (float)part.at[j];
                    xs[i] *= scale;
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
        both(mean, along);
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
    __shared__ float sums[N];
    auto write = [&](float* mine, float* to) {{
        for (int turn = 0; turn < TEAMS; ++turn) {{
            if (team == turn) {{
                for (int p = 0; p < PARTS; ++p) {{
                    const int place = p * TEAM + lane;
                    if (place < N / WIDE)
                        for (int j = 0; j < WIDE; ++j) {{
                            float* at = &sums[place * WIDE + j];
                            *at = (turn ? *at : 0.0f) + mine[p * WIDE + j];
                        }}
                }}
            }}
            __syncthreads();
        }}
        for (int i = threadIdx.x; i < N; i += {threads}) to[i] = sums[i];
        __syncthreads();
    }};
    float* mine = parts + (long long)blockIdx.x * KINDS * N;
    {written}
"""

ENDED = """
    const int column = blockIdx.x * 32 + threadIdx.x % 32;
    const int first = threadIdx.x / 32;
    __shared__ float sums[8][33];
    float total = 0;
    if (column < KINDS * N)
        for (int row = first; row < parts_shape[0]; row += 8)
            total += parts[(long long)row * KINDS * N + column];
    sums[first][threadIdx.x % 32] = total;
    __syncthreads();
    if (first == 0 && column < KINDS * N) {{
        for (int i = 1; i < 8; ++i) total += sums[i][threadIdx.x % 32];
        {ended}
    }}
"""
