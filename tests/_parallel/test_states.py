"""States of several processes as ordinary checkpoints, restored in any number of processes."""

from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from purestep.testing import same_bits
from tests._parallel.launching import launched

PROGRAM = Path(__file__).parent / "programs" / "restoring.py"


def test_a_run_goes_on_with_4_1_and_2_processes(tmp_path):
    files = ["none", *(tmp_path / f"{number}.safetensors" for number in range(3))]
    for count, before, after, steps in zip((4, 1, 2), files, files[1:], (3, 6, 9), strict=False):
        made, away = launched(PROGRAM, count, [before, after])[0].split()
        assert (int(made), float(away) < 2e-6) == (steps, True)


def loss_fn(params, batch, rng):
    return params["w"].sum() * batch["x"].sum()


def test_a_state_without_parts_stays_as_it_is():
    transform = ps.optimizers.adam(0.1)
    state = ps.TrainState.create(ps.packed({"w": mx.ones(3)}), transform)
    step = ps.sharded(loss_fn, transform)
    assert same_bits(ps.parallel.gathered(state), state)
    assert same_bits(ps.parallel.divided(state, step), state)


def test_refuses():
    state = ps.TrainState.create({"w": mx.ones(3)}, ps.optimizers.adam(0.1))
    with pytest.raises(ValueError, match="gathered: to must be less than 1, the number of ranks, got 1"):
        ps.parallel.gathered(state, to=1)
    with pytest.raises(TypeError, match="gathered: state must be a TrainState"):
        ps.parallel.gathered({"w": mx.ones(3)})
    with pytest.raises(TypeError, match="divided: step must be a step of sharded"):
        ps.parallel.divided(state, ps.Step(lambda state, batch: None))
