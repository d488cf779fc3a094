"""Predicted memory against MLX's own count."""

import mlx.core as mx
import pytest

import purestep as ps
from tests._graph.steps import STEPS
from tests._memory.measuring import measured, on_cpu
from tests.refusals import parts


@on_cpu
@pytest.mark.parametrize("name", STEPS)
def test_the_prediction_is_within_a_tenth_of_the_measured_peak(name):
    before = mx.get_active_memory()
    report = ps.memory.predict(*STEPS[name]())
    assert report.peak == pytest.approx(measured(STEPS[name]) - before, rel=0.1)


def test_the_parts_are_the_whole():
    report = ps.memory.predict(*STEPS["perceptron"]())
    kinds = "parameters optimizer other frozen batch gradients activations waiting".split()
    assert sum(getattr(report, kind) for kind in kinds) == report.peak
    assert all(getattr(report, kind) >= 0 for kind in kinds)
    assert report.parameters == 4 * (256 * 256 + 256) * 4
    assert report.optimizer == 2 * report.parameters + 4 + 4 + 4  # and counts and rate
    assert report.batch == 1024 * 256 * 4
    assert report.gradients + report.activations + report.waiting >= 4 * report.batch  # the inputs of layers


def test_nothing_is_allocated():
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step, state, batch = STEPS["bfloat16"]()
    ps.memory.predict(step, state, batch)
    assert mx.get_peak_memory() - before < 20_000


def test_the_state_of_the_caller_counts_in_a_run():
    step, state, batch = STEPS["perceptron"]()
    report = ps.memory.predict(ps.compiled(step), state, batch)
    assert report.peak_in_run >= report.peak + report.parameters + report.optimizer


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a GPU's host is ahead of small steps")
def test_recomputation_and_microbatches_take_less():
    peaks = {name: ps.memory.predict(*STEPS[name]()).peak for name in STEPS}
    # The exponentials of one layer take three arrays for a moment: much, in a model as small as this one.
    assert peaks["recomputed"] < 0.8 * peaks["transformer"]
    assert peaks["microbatches"] < 0.7 * peaks["transformer"]
    assert peaks["bfloat16"] < 0.8 * peaks["transformer"]


def test_a_step_that_drops_its_state_has_no_negative_parts():
    _, state, batch = STEPS["perceptron"]()
    report = ps.memory.predict(lambda state, batch: {"loss": batch.sum()}, state, batch)
    assert min(report[:9]) >= 0
    assert report.peak == sum(report[:8])


def test_wrong_arguments_are_refused():
    step, state, batch = STEPS["perceptron"]()
    with pytest.raises(TypeError, match=parts("memory.predict: step ... callable, got 3")):
        ps.memory.predict(3, state, batch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=parts("memory.predict: state ... TrainState, got dict")):
        ps.memory.predict(step, {"w": mx.zeros(3)}, batch)  # type: ignore[arg-type]
