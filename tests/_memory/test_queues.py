"""When the memory of finished kernels comes back, worked by hand."""

import mlx.core as mx

from purestep._core import pacing
from purestep._graph.nodes import Operation, Value
from purestep._memory.layout import Buffer
from purestep._memory.queues import CpuQueue, GpuQueue, Speeds


def operation(name="Add", dtype=mx.bfloat16, size=1):
    return Operation(name, [Value((size, size), dtype)], [Value((size, size), dtype)], [])


def released(queue, kernels, count, made=operation):
    """Return, for each of `count` submissions, how many buffers came back."""
    return [len(queue.submit(made(), [Buffer(1)], kernels, 1)) for _ in range(count)]


def test_a_cpu_is_ten_groups_of_ten_ahead():
    # Each operation is its kernel and the release of its buffers, so five operations are a group.
    found = released(CpuQueue(), 1, 60)
    assert found == [0] * 54 + [5] + [0] * 4 + [5]


def test_a_gpu_that_keeps_up_gives_memory_back_at_the_end_of_a_group():
    fast = GpuQueue(Speeds(9, 1e18, 1e18, 1e18, 1e18, waits=False))
    found = released(fast, 1, 40)
    assert sum(found) == 30  # of four groups of ten the last has just been submitted
    assert max(found) == 10


def test_a_kernel_that_ends_a_group_gives_its_memory_back():
    fast = GpuQueue(Speeds(100, 1e18, 1e18, 1e18, 1e18, waits=False))
    assert released(fast, 1, 5) == [0] * 5
    released(fast, 1, 1, lambda: operation(pacing.END))
    assert sum(released(fast, 1, 5)) == 6


def test_a_slow_gpu_is_at_most_ten_groups_behind():
    slow = GpuQueue(Speeds(9, 1e18, 1.0, 1.0, 1.0, waits=False))
    found = released(slow, 1, 120)
    assert sum(found) == 20
    assert found[109] == 10  # the eleventh group makes the host wait for the first


def test_the_host_waits_for_float32_products_where_it_does_so_on_cuda():
    def product():
        return operation("Matmul", mx.float32, 64)

    found = []
    for waits in (True, False):
        queue = GpuQueue(Speeds(9, 1e18, 1.0, 1.0, 1.0, waits=waits))
        found.append(sum(released(queue, 1, 41, product)))
    assert found == [40, 0]


def test_sizes_are_rounded_as_cuda_rounds_them():
    queue = GpuQueue(Speeds(9, 1e18, 1.0, 1.0, 1.0, waits=False))
    assert [queue.size(n) for n in (1, 8, 9, 1000, 16383, 16384, 16385)] == [
        8, 8, 16, 1024, 16384, 16384, 32768,
    ]  # fmt: skip
