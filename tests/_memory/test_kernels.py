"""The memory of single operations, and of the ways in which a step begins."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep._graph.capture import capture
from purestep._memory.queues import CpuQueue
from purestep._memory.simulating import Simulation
from tests._graph.steps import seeded
from tests._memory.measuring import measured, on_cpu, taken


@on_cpu
@pytest.mark.parametrize("name", ["sum", "prod", "max"])
def test_a_reduction_in_bfloat16_takes_what_mlx_takes(name):
    array = mx.zeros((200, 3, 256), mx.bfloat16)

    def reduced(x):
        return getattr(x, name)(1), getattr(mx.exp(x), name)(1)

    found = taken(reduced, array)
    graph = capture(reduced, array)
    simulation = Simulation(graph, CpuQueue(), graph.inputs).run()
    assert simulation.peak - array.nbytes == pytest.approx(found, abs=20_000)
    assert simulation.active >= array.nbytes + sum(value.nbytes for value in graph.outputs)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.up = nn.Upsample(2, mode="linear")
        self.last = nn.Conv2d(48, 3, 3, padding=1)

    def __call__(self, x):
        x = nn.silu(self.first(x))
        return self.last(mx.concatenate([x, self.up(nn.silu(self.norm(self.down(x))))], -1))


def _unet():
    apply, params, _ = ps.functional(seeded(UNet))
    transform = ps.optimizers.adam(1e-3)

    def loss_fn(params, batch, rng):
        return mx.square(apply(params, batch)).mean()

    return (
        ps.train_step(loss_fn, transform),
        ps.TrainState.create(params, transform),
        mx.zeros((8, 24, 24, 3)),
    )


@on_cpu
def test_the_peak_is_the_highest_of_several_steps():
    # A step begins within a group of kernels that earlier evaluations began.
    before = mx.get_active_memory()
    report = ps.memory.predict(*_unet())
    assert report.peak == pytest.approx(measured(_unet, steps=10) - before, rel=0.05)


@on_cpu
def test_experts_with_sorted_indices_are_predicted():
    # MLX cannot describe the gradient of their weights.
    def create():
        transform = ps.optimizers.adam(1e-3)

        def loss_fn(params, batch, rng):
            order = mx.sort(batch["expert"])
            hidden = mx.gather_mm(
                batch["x"], params["up"].swapaxes(-1, -2), rhs_indices=order, sorted_indices=True
            )
            return mx.square(
                mx.gather_mm(mx.tanh(hidden), params["down"], rhs_indices=order, sorted_indices=True)
            ).mean()

        params = {"up": mx.zeros((4, 256, 64)), "down": mx.zeros((4, 256, 64))}
        batch = {"x": mx.zeros((800, 1, 64)), "expert": mx.arange(800, dtype=mx.uint32) // 200}
        return ps.train_step(loss_fn, transform), ps.TrainState.create(params, transform), batch

    before = mx.get_active_memory()
    report = ps.memory.predict(*create())
    # The host is ahead of the CPU by more or less, as the load of the machine allows.
    assert report.peak == pytest.approx(measured(create) - before, rel=0.15)
