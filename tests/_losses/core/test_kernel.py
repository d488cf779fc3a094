"""The kernel of `linear_cross_entropy`: its source on emulated threads, and on an NVIDIA GPU."""

import ctypes
import math
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest

from purestep import compiled
from purestep._core import cuda, hardware
from purestep._losses.core import kernel
from purestep._losses.core.kernel_source import Form, source
from purestep.losses import cross_entropy, linear_cross_entropy

needs_cuda = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
FORMS = [Form(), Form(0.1, 1e-3, 30), Form(0.2)]
WIDTHS = [256, 260, 257, 8, 3]
DIALECTS = {
    "cuda": {},
    "metal": {"metal": True},
    "kept": {"kept": True},
    "over": {"over": True},
    "kept_over": {"kept": True, "over": True},
}

# What a block of a GPU has, on threads of a CPU that meet at barriers.
EMULATED = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>
constexpr int THREADS = 64;
static std::barrier<> meeting(THREADS);
static float exchanged[THREADS];
using std::isfinite;
struct Index { int x; };
struct alignas(16) float4 { float at[4]; };
float4 row_memory[4096];
static const float numbers[30] = {7, 1, 2, 3, 4, 5, 6, 7, 8, 9};
thread_local Index threadIdx, blockIdx, thread_position_in_threadgroup, threadgroup_position_in_grid;
static float purestep_exp2(float x) { return std::exp2(x); }
namespace metal {
namespace fast { static float exp2(float x) { return std::exp2(x); } }
namespace precise { using std::log; using std::tanh; }
}
namespace mem_flags { constexpr int mem_threadgroup = 0; }
static void __syncthreads() { meeting.arrive_and_wait(); }
static void threadgroup_barrier(int) { meeting.arrive_and_wait(); }
static float simd_shuffle_xor(float value, int step) {
    const int own = threadIdx.x;
    exchanged[own] = value;
    meeting.arrive_and_wait();
    const float found = exchanged[own ^ step];
    meeting.arrive_and_wait();
    return found;
}
#define PURESTEP_SHUFFLE simd_shuffle_xor
#define __shared__ static
#define threadgroup static
#define device
"""
FUNCTION = """
extern "C" void run_{name}(
    float* logits, const float* factors, const int* targets, float* losses, float* slope, int rows) {{
    using T = float;
    constexpr int N = {width}, FEATURES = 5;
    // Of a kernel that writes the slope over the logits:
    float* const zeros = slope;
    float* const copy = slope + FEATURES;
    const float* const hidden = numbers;
    std::vector<std::thread> threads;
    for (int number = 0; number < THREADS; ++number) threads.emplace_back([=] {{
        threadIdx.x = thread_position_in_threadgroup.x = number;
        for (int block = 0; block < rows; ++block) {{
            blockIdx.x = threadgroup_position_in_grid.x = block;
            [&] {{ {body} }}();
            meeting.arrive_and_wait();
        }}
    }});
    for (auto& each : threads) each.join();
}}
"""


def by_hand(form, logits, factors, targets):
    """Return the losses, and the gradient of their sum times the factors, in float64."""
    x = np.asarray(logits, np.float64)
    cap = form.soft_cap
    x, inner = (x, 1.0) if cap is None else (cap * np.tanh(x / cap), 1 - np.tanh(x / cap) ** 2)
    top = x.max(-1, keepdims=True)
    normalizer = np.log(np.exp(x - top).sum(-1, keepdims=True)) + top
    p, one = np.exp(x - normalizer), np.eye(x.shape[-1])[targets]
    s, z = form.label_smoothing, form.z_loss
    losses = normalizer - (1 - s) * (x * one).sum(-1, keepdims=True) - s * x.mean(-1, keepdims=True)
    losses = (losses + z * normalizer**2)[:, 0]
    slope = p * (1 + 2 * z * normalizer) - (1 - s) * one - s / x.shape[-1]
    factors = np.asarray(factors, np.float64)
    return np.where(factors == 0, 0.0, losses), factors[:, None] * slope * inner


def draws(width, rows=6, offset=2**20):
    draw = np.random.default_rng(width)
    logits = (4 * draw.standard_normal((rows, width))).astype(np.float32)
    logits[1] += 500  # rows of one sign
    logits[2] -= 500
    logits[5] += offset
    factors = np.array([0.5, 1.0, 0.25, 0.0, 2.0, 1.0][:rows], np.float32)
    return logits, factors, draw.integers(0, width, rows).astype(np.int32)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    parts = [EMULATED]
    for index, form in enumerate(FORMS):
        for width in WIDTHS:
            for dialect, options in DIALECTS.items():
                if options.get("kept") and width % 4:
                    continue
                body = source(form, **options).replace("extern __shared__", "extern")
                parts.append(
                    FUNCTION.format(name=f"{dialect}_{index}_{width}", width=width, body=f"\n{body}\n")
                )
    room = tmp_path_factory.mktemp("emulated")
    (room / "kernel.cpp").write_text("\n".join(parts))
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        "kernel.cpp",
        "-o",
        "kernel.so",
    ]
    subprocess.run(command, cwd=room, check=True)
    return ctypes.CDLL(str(room / "kernel.so"))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("index", range(len(FORMS)))
def test_source_computes_the_formula(emulated, index, width, dialect):
    if dialect.startswith("kept") and width % 4:
        pytest.skip("rows of whole pieces of 16 bytes are kept")
    logits, factors, targets = draws(width)
    want, want_slope = by_hand(FORMS[index], logits, factors, targets)
    losses, written = np.full(len(factors), np.nan, np.float32), np.full(logits.size + 35, np.nan, np.float32)
    arrays = [x.ctypes.data_as(ctypes.c_void_p) for x in (logits, factors, targets, losses, written)]
    getattr(emulated, f"run_{dialect}_{index}_{width}")(*arrays, len(factors))
    slope = written[: logits.size].reshape(logits.shape)
    if dialect.endswith("over"):
        np.testing.assert_array_equal(written[:5], 0)
        np.testing.assert_array_equal(written[5:35], [7, *range(1, 10), *[0] * 20])
        slope = logits
    np.testing.assert_allclose(losses, want, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=2e-5, atol=2e-7)


def test_source_of_a_row_that_is_not_finite(emulated):
    logits, factors, targets = draws(256)
    logits[0, 7], logits[1, 7], logits[4, 7] = np.nan, np.inf, -np.inf
    losses, slope = np.zeros(len(factors), np.float32), np.zeros_like(logits)
    arrays = [x.ctypes.data_as(ctypes.c_void_p) for x in (logits, factors, targets, losses, slope)]
    emulated.run_cuda_0_256(*arrays, len(factors))
    assert np.isnan(losses[:2]).all()
    assert np.isnan(slope[0]).all()
    assert np.isfinite(losses[2:]).all()
    assert slope[4, 7] == 0


def test_without_a_gpu_no_kernel_is_used():
    if not hardware.on_gpu():
        assert not kernel.serves(Form(), mx.float32)


@needs_cuda
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("width", [50304, 50257, 256, 3])
@pytest.mark.parametrize("form", FORMS)
def test_kernel_computes_the_formula(form, width, dtype):
    logits, factors, targets = draws(width, offset=2**10 if dtype == mx.float16 else 2**20)
    given = mx.array(logits).astype(dtype)
    with cuda.kernels():
        assert kernel.serves(form, dtype)
        losses, slope = kernel.losses_and_slope(form, given, mx.array(factors), mx.array(targets))
    want, want_slope = by_hand(form, np.array(given.astype(mx.float32)), factors, targets)
    np.testing.assert_allclose(np.array(losses), want, rtol=4e-6, atol=4e-6)
    digits = {mx.float32: 2e-5, mx.bfloat16: 8e-3, mx.float16: 1e-3}[dtype]
    np.testing.assert_allclose(np.array(slope.astype(mx.float32)), want_slope, rtol=digits, atol=1e-7)


@needs_cuda
@pytest.mark.parametrize("chunk", [64, 24, 7])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}])
def test_compiled_loss_and_gradients_are_those_of_the_plain_loss(options, chunk):
    keys = mx.random.split(mx.random.key(0), 3)
    hidden, weight = mx.random.normal((64, 16), key=keys[0]), mx.random.normal((50, 16), key=keys[1])
    targets = mx.random.randint(0, 50, (64,), key=keys[2])
    targets[5] = -100

    def in_chunks(params, targets):
        return linear_cross_entropy(*params, targets, ignore_index=-100, chunk_size=chunk, **options).value

    def plain(params, targets):
        return cross_entropy(params[0] @ params[1].T, targets, ignore_index=-100, **options).value

    loss, found = compiled(mx.value_and_grad(in_chunks))((hidden, weight), targets)
    want, wanted = mx.value_and_grad(plain)((hidden, weight), targets)
    assert math.isclose(loss.item(), want.item(), rel_tol=1e-6)
    for got, right in zip(found, wanted, strict=True):
        assert mx.allclose(got, right, rtol=1e-4, atol=1e-6).item()


@needs_cuda
def test_targets_and_states_of_any_layout():
    weight = mx.random.normal((50, 16), key=mx.random.key(0))
    states = mx.random.normal((16, 8), key=mx.random.key(1)).T

    def loss(arrays, targets):
        return linear_cross_entropy(*arrays, targets, chunk_size=3).value

    step = compiled(mx.value_and_grad(loss))
    for targets in (mx.broadcast_to(mx.array(5), (8,)), mx.arange(16)[::2], mx.arange(8)[::-1]):
        got, found = step((states, weight), targets)
        want, wanted = mx.value_and_grad(loss)((states, weight), targets)
        assert math.isclose(got.item(), want.item(), rel_tol=1e-5)
        assert all(mx.allclose(a, b, atol=1e-5).item() for a, b in zip(found, wanted, strict=True))


@needs_cuda
@pytest.mark.parametrize("moved", [0, 1, None])
@pytest.mark.parametrize(
    ("tokens", "classes", "chunk"), [(256, 50304, 256), (512, 4099, 100), (96, 70000, 32)]
)
def test_gradient_in_the_place_of_the_logits_is_ordered(tokens, classes, chunk, moved):
    # Other operations read the same product, before and after; each call is repeated.
    keys = mx.random.split(mx.random.key(1), 3)
    hidden = mx.random.normal((tokens, 64), key=keys[0]).astype(mx.bfloat16)
    weight = (0.1 * mx.random.normal((classes, 64), key=keys[1])).astype(mx.bfloat16)
    targets = mx.random.randint(0, classes, (tokens,), key=keys[2])

    def both(loss):
        def made(moving, still):
            hidden, weight, targets = still
            if moved is None:
                hidden, weight = moving
            else:
                hidden, weight = (moving, weight) if moved == 0 else (hidden, moving)
            value = loss(hidden, weight, targets) + 0.5 * loss(hidden, weight, targets)
            return value, (hidden @ weight.T).astype(mx.float32)

        moving = [hidden, weight] if moved is None else [hidden, weight][moved]
        return mx.value_and_grad(made), moving

    def in_chunks(hidden, weight, targets):
        return linear_cross_entropy(hidden, weight, targets, chunk_size=chunk).value

    def plain(hidden, weight, targets):
        return cross_entropy((hidden @ weight.T).astype(mx.float32), targets).value

    function, moving = both(in_chunks)
    step = compiled(function)
    reference, _ = both(plain)
    still = (hidden, weight, targets)
    (want, logits), wanted = reference(moving, still)
    for _ in range(3):
        (loss, got), found = step(moving, still)
        assert math.isclose(loss.item(), want.item(), rel_tol=1e-4)
        assert mx.array_equal(got, logits).item()
        for mine, theirs in zip(found, wanted, strict=True) if moved is None else [(found, wanted)]:
            apart = mx.linalg.norm((mine - theirs).astype(mx.float32)) / mx.linalg.norm(
                theirs.astype(mx.float32)
            )
            assert apart.item() < 0.01
