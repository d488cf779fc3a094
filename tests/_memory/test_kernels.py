"""The memory of single operations, and of the ways in which a step begins."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep._graph.capture import capture
from purestep._memory.queues import CpuQueue
from purestep._memory.simulating import Simulation
from tests._graph.steps import seeded

on_cpu = pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a GPU takes other memory")


@on_cpu
@pytest.mark.parametrize("name", ["sum", "prod", "max"])
def test_a_reduction_in_bfloat16_takes_what_mlx_takes(name):
    array = mx.zeros((200, 3, 256), mx.bfloat16)

    def reduced(x):
        return getattr(x, name)(1), getattr(mx.exp(x), name)(1)

    mx.eval(array)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(reduced(array))
    measured = mx.get_peak_memory() - before
    graph = capture(reduced, array)
    simulation = Simulation(graph, CpuQueue(), graph.inputs).run()
    assert simulation.peak - array.nbytes == pytest.approx(measured, abs=20_000)
    assert simulation.active >= array.nbytes + sum(value.nbytes for value in graph.outputs)


@on_cpu
def test_the_peak_is_the_highest_of_several_steps():
    # A step begins within a group of kernels that earlier evaluations began.
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.Upsample(2, mode="linear"),
            nn.Conv2d(32, 3, 3, padding=1),
        )
    )
    apply, params, _ = ps.functional(model)
    transform = ps.optimizers.adam(1e-3)
    step = ps.compiled(
        ps.train_step(lambda params, batch, rng: mx.square(apply(params, batch)).mean(), transform)
    )

    def create():
        return ps.TrainState.create(params, transform), mx.zeros((8, 24, 24, 3))

    report = ps.memory.predict(step, *create())
    mx.eval(params)
    before = mx.get_active_memory() - report.parameters
    state, batch = create()
    mx.eval(batch)
    peaks = []
    for _ in range(10):
        mx.synchronize()
        mx.reset_peak_memory()
        state, metrics = step(state, batch)
        mx.eval(state, metrics)
        del metrics
        peaks.append(mx.get_peak_memory() - before)
    assert report.peak == pytest.approx(max(peaks), rel=0.05)
