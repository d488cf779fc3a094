"""The kernel of `activations`: its source on a CPU, thread by thread, and the kernel on an NVIDIA GPU."""

import ctypes
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._core import cuda, hardware
from purestep._measures import activations, output_kernel
from tests._measures.measuring import model_step

EPS = 0.4
PROGRAM = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
#define __shared__ static
struct Place {{ int x; }};
static thread_local Place threadIdx, blockIdx;
static std::barrier<> together({threads});
static void __syncthreads() {{ together.arrive_and_wait(); }}
using C = float;
using std::fabs;
static void body(const float* eps, const float* x, const int* x_shape, const float* y, const int* y_shape,
                 float* totals, C* large) {{ {source} }}
extern "C" void run(const float* eps, const float* x, const int* x_shape, const float* y,
                    const int* y_shape, float* totals, C* large, int blocks) {{
    for (int block = 0; block < blocks; ++block) {{
        std::vector<std::thread> threads;
        for (int thread = 0; thread < {threads}; ++thread)
            threads.emplace_back([=] {{
                threadIdx.x = thread;
                blockIdx.x = block;
                body(eps, x, x_shape, y, y_shape, totals, large);
            }});
        for (auto& each : threads) each.join();
    }}
}}
"""


def by_numpy(out, given, parts):
    """Return the sums over parts of 16 rows, float64."""
    totals, large = np.zeros((parts, 3 + (given is not None))), np.zeros((parts, out.shape[1]))
    for part in range(parts):
        cut = out[16 * part : 16 * part + 16]
        totals[part, :3] = len(cut), np.linalg.norm(cut, axis=1).sum(), cut.sum()
        large[part] = (~(abs(cut) <= EPS)).sum(axis=0)
        if given is not None:
            totals[part, 3] = np.linalg.norm(given[16 * part : 16 * part + 16], axis=1).sum()
    return totals, large


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("given", [None, (40, 300), (5, 2)])
def test_the_source_sums_what_numpy_sums(tmp_path, given):
    draw = np.random.default_rng(0)
    out = draw.normal(size=(19, 270)).astype(np.float32)
    out[3, 5] = np.nan
    other = None if given is None else draw.normal(size=given).astype(np.float32)
    program = PROGRAM.format(threads=256, source=output_kernel.source(other is not None))
    (tmp_path / "kernel.cpp").write_text(program)
    library = tmp_path / "kernel.so"
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", tmp_path / "kernel.cpp", "-o", library],
        check=True,
    )
    parts = max(-(-len(x) // 16) for x in (out, other) if x is not None)
    totals = np.zeros((parts, 3 + (other is not None)), np.float32)
    large = np.full((parts, 270), -1, np.float32)

    def pointer(array):
        return None if array is None else array.ctypes.data_as(ctypes.c_void_p)

    shapes = [None if x is None else np.array(x.shape, np.int32) for x in (out, other)]
    eps = np.array([EPS], np.float32)
    ctypes.CDLL(str(library)).run(
        pointer(eps), pointer(out), pointer(shapes[0]), pointer(other), pointer(shapes[1]),
        pointer(totals), pointer(large), parts,
    )  # fmt: skip
    want = by_numpy(out, other, parts)
    np.testing.assert_allclose(totals, want[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(large, want[1])


def test_parts_of_rows_measure_the_same(monkeypatch):
    """Numpy plays the kernel."""

    def statistics(out, given, eps):
        rows = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (out, given)]
        totals, large = by_numpy(rows[0], rows[1], -(-len(rows[0]) // 16))
        return {"totals": mx.array(totals.astype(np.float32)), "large": mx.array(large.astype(np.float16))}

    measure = [ps.metrics.activations(["layers.?", "*.relu"], eps=EPS)]
    step, state, batch, _ = model_step(measure, microbatches=2)
    want = step(state, batch)[1]
    monkeypatch.setattr(output_kernel, "serves", lambda *arrays: True)
    monkeypatch.setattr(output_kernel, "statistics", statistics)
    found = step(state, batch)[1]
    for name, value in want.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name


@pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("width", [1, 300, 3072])
def test_the_kernel_sums_what_plain_operations_sum(dtype, width):
    out = mx.random.normal((3, 13, width), key=mx.random.key(0)).astype(dtype)
    for given in (None, out.swapaxes(0, 1), mx.random.normal((70, 5), key=mx.random.key(1))):
        want = activations.statistics(out, given, EPS)
        with cuda.kernels():
            found = activations.statistics(out, given, EPS)
        for name in want:
            a, b = (x[name].astype(mx.float32).sum(axis=0) for x in (found, want))
            assert mx.allclose(a, b, rtol=1e-4, atol=1e-2 if name == "totals" else 0).item(), name


@pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
def test_a_compiled_step_measures_what_an_eager_one_does():
    measure = [ps.metrics.activations(["layers.?", "*.relu"]), ps.metrics.attention_entropy("*.attention")]
    step, state, batch, _ = model_step(measure, microbatches=2)
    eager, compiled = step(state, batch)[1], ps.compiled(step)(state, batch)[1]
    for name in eager:
        assert compiled[name].item() == pytest.approx(eager[name].item(), rel=1e-3, abs=1e-4), name
