"""How many arguments end a group of kernels, and that ends bound the memory of an NVIDIA GPU."""

import mlx.core as mx
import pytest

from purestep import compiled
from purestep._core import cuda, hardware, pacing
from purestep._losses.tokens import projection
from purestep.losses import linear_cross_entropy

needs_cuda = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("size", [1, 1000, 2**20 - 1, 2**20, 2**20 + 1, 38_633_472])
@pytest.mark.parametrize("most", [1, 25, 200, 4096])
def test_the_arguments_exceed_the_limit_as_mlx_counts_it(size, most):
    count = pacing.needed(size, most)
    assert (count * size) >> 20 > most
    assert ((count - 1) * size) >> 20 <= most


def test_the_limits_are_those_of_the_variables(monkeypatch):
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    monkeypatch.delenv("MLX_MAX_MB_PER_BUFFER", raising=False)
    kernels, elements = pacing.limits()
    assert kernels == 7
    assert elements in (25, 40, 100, 400, 1000)
    for text, number in [("12 MB", 12), ("many", 0), ("-3", -3)]:
        monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", text)
        assert pacing.limits()[1] == number


def test_a_small_array_ends_no_group():
    with cuda.kernels():
        assert not pacing.usable(mx.zeros(8))
        assert pacing.usable(mx.zeros(2**22 * 4)) == hardware.on_cuda()


@needs_cuda
def test_ends_bound_the_memory_of_chunks(monkeypatch):
    keys = mx.random.split(mx.random.key(0), 3)
    hidden = mx.random.normal((4096, 512), key=keys[0]).astype(mx.bfloat16)
    weight = mx.random.normal((50304, 512), key=keys[1]).astype(mx.bfloat16)
    targets = mx.random.randint(0, 50304, (4096,), key=keys[2])
    mx.eval(hidden, weight, targets)

    def peak(ends):
        monkeypatch.setattr(projection, "_ENDS", ends)

        def loss(arrays, targets):
            return linear_cross_entropy(*arrays, targets, chunk_size=256).value

        step = compiled(mx.value_and_grad(loss))
        for _ in range(3):
            mx.eval(step((hidden, weight), targets))
            mx.reset_peak_memory()
        mx.eval(step((hidden, weight), targets))
        return mx.get_peak_memory() - mx.get_active_memory()

    assert peak(6) < 0.6 * peak(0)
