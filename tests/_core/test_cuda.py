"""Kernels that read many arrays at once, against MLX's operations; they run on an NVIDIA GPU."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._core import cuda, hardware, norms

pytestmark = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def allowed():
    """Use the kernels, as in a compiled step."""
    with cuda.kernels():
        yield


DTYPES = [mx.float32, mx.bfloat16, mx.float16]


def arrays(dtype):
    """Return arrays of awkward sizes, layouts and addresses."""
    draw = mx.random.normal((70_000,), key=mx.random.key(1))
    odd = [draw[3:40_000], draw[:21].reshape(3, 7).T, draw[5], draw[:16384], draw[:16385], draw[::2]]
    return [x.astype(dtype) for x in odd]


def vector(found):
    return mx.concatenate([x.reshape(-1) for x in found])


@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_arrays_are_their_concatenation_bit_for_bit(dtype):
    found = arrays(dtype)
    assert mx.array_equal(cuda.joined(found), vector(found)).item()


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_and_scaled_arrays_are_products_in_float32(dtype, out):
    found, scale = arrays(dtype), mx.array(0.3)
    want = (vector(found).astype(mx.float32) * scale).astype(out)
    assert mx.array_equal(cuda.joined_and_scaled(found, scale, out), want).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_square_sums_are_numpys(dtype):
    found = arrays(dtype)
    sums, parts = cuda.sums("squares", found)
    assert sums.shape == (sum(parts),)
    ends = np.cumsum([0, *parts])
    for x, begin, end in zip(found, ends[:-1], ends[1:], strict=True):
        want = np.square(np.asarray(x.astype(mx.float32), np.float64)).sum()
        assert sums[int(begin) : int(end)].sum().item() == pytest.approx(want, rel=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_distances_and_counts_are_numpys(dtype):
    first = arrays(dtype)
    second = [mx.full(x.shape, 0.5, dtype) for x in first]
    sums, parts = cuda.sums("distances", first + second)
    want = sum(np.square(np.asarray(x.astype(mx.float32), np.float64) - 0.5).sum() for x in first)
    assert sums.sum().item() == pytest.approx(want, rel=2e-6)
    assert len(parts) == len(first)
    marked = [
        mx.where(mx.arange(50_000) % 3 == 0, mx.array(value), 1.0).astype(dtype) for value in (0.0, np.nan)
    ]
    marked.append(mx.array([np.inf, -np.inf, -0.0], dtype))
    assert cuda.sums("zeros", marked)[0].sum().item() == 16_667 + 1
    assert cuda.sums("nonfinite", marked)[0].sum().item() == 16_667 + 2


def test_more_arrays_than_one_kernel_takes():
    found = [mx.full((3,), float(i % 7)) for i in range(600)]
    assert mx.array_equal(cuda.joined(found), vector(found)).item()
    want = sum(3 * (i % 7) ** 2 for i in range(600))
    assert cuda.sums("squares", found)[0].sum().item() == want
    assert cuda.sums("distances", found + [mx.zeros(3)] * 600)[0].sum().item() == want


def test_the_norm_has_the_gradient_of_a_norm():
    tree = {"a": mx.array([3.0, 0.0]), "b": mx.array([[4.0]])}
    slopes = mx.grad(norms.norm)(tree)
    assert mx.allclose(slopes["a"], mx.array([0.6, 0.0])).item()
    assert mx.allclose(slopes["b"], mx.array([[0.8]])).item()
    rows = mx.random.normal((5, 40_000), key=mx.random.key(2))
    compiled = mx.compile(lambda x: norms.norm({"x": x}))
    assert compiled(rows).item() == pytest.approx(mx.linalg.norm(rows).item(), rel=1e-5)


def test_vmap_does_without_kernels():
    rows = mx.random.normal((5, 40_000), key=mx.random.key(2))
    norm = mx.vmap(lambda row: norms.norm({"x": row}))
    want = mx.linalg.norm(rows, axis=1)
    with cuda.kernels(allow=False):
        assert mx.allclose(norm(rows), want, rtol=1e-5).item()
    step = ps.compiled(lambda state, batch: (state, norm(batch)))
    assert mx.allclose(step({}, rows)[1], want, rtol=1e-5).item()
