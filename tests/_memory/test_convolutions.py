"""The memory of convolutions against MLX's own count."""

import mlx.core as mx
import pytest

from purestep._graph.capture import capture
from purestep._memory.queues import CpuQueue
from purestep._memory.simulating import Simulation
from tests._memory.measuring import on_cpu, taken

CASES = {
    "1d": ((8, 100, 32), (64, 5, 32), {"padding": 3}),
    "1d grouped": ((8, 100, 32), (64, 5, 4), {"groups": 8}),
    "1d dilated": ((8, 100, 32), (64, 5, 32), {"kernel_dilation": 2}),
    "1d grouped and dilated": ((8, 100, 32), (64, 5, 4), {"groups": 8, "kernel_dilation": 2}),
    "1d flipped": ((8, 100, 32), (64, 5, 32), {"flip": True}),
    "1d grouped and flipped": ((8, 100, 32), (64, 5, 4), {"groups": 8, "flip": True}),
    "1d transposed": ((8, 100, 32), (64, 5, 32), {"input_dilation": 2, "flip": True}),
    "2d": ((8, 20, 20, 32), (64, 3, 3, 32), {"padding": 1, "stride": 2}),
    "2d grouped": ((8, 20, 20, 32), (64, 3, 3, 4), {"groups": 8}),
    "2d flipped": ((8, 20, 20, 32), (64, 3, 3, 32), {"flip": True}),
    "3d": ((4, 10, 10, 10, 16), (32, 3, 3, 3, 16), {}),
}


@on_cpu
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_takes_what_mlx_takes(name, dtype):
    shape, weights, options = CASES[name]
    arrays = mx.zeros(shape, dtype), mx.zeros(weights, dtype)

    def convolved(x, w):
        return mx.conv_general(x, w, **options)

    measured = taken(convolved, *arrays)
    graph = capture(convolved, *arrays)
    predicted = Simulation(graph, CpuQueue(), graph.inputs).run().peak - sum(array.nbytes for array in arrays)
    assert predicted == pytest.approx(measured, rel=0.01, abs=20_000)
