"""state_memory: bytes of state by field."""

from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep.optimizers import adafactor, sm3
from purestep.transforms import master_weights, scale, scale_by_adam, state_memory, trace

PARAMS = {"w": mx.zeros((100, 100), mx.bfloat16), "norm": [mx.zeros(100), None]}
SIZE = 10_100


def test_adamw_takes_eight_bytes_a_parameter_and_its_counters():
    found = state_memory(ps.optimizers.adamw(1e-3), PARAMS)
    assert found == {
        "0.count": 4 / SIZE,
        "0.mu": 4.0,
        "0.nu": 4.0,
        "2.count": 4 / SIZE,
        "2.learning_rate": 4 / SIZE,
    }


def test_dtypes_factors_and_wrappers_are_counted_as_they_are():
    assert state_memory(trace(0.9, accumulator_dtype=mx.bfloat16), PARAMS) == {"trace": 2.0}
    assert state_memory(scale(2.0), PARAMS) == {}
    rows = state_memory(adafactor(1e-3, min_dim_size_to_factor=100), PARAMS)
    assert rows["0.v_row"] == rows["0.v_col"] == rows["0.v"] == 400 / SIZE
    assert state_memory(sm3(1e-3), PARAMS)["0.mu"] == 1200 / SIZE
    kept = state_memory(master_weights(scale_by_adam()), PARAMS)
    assert kept == {
        "params": 40_000 / SIZE,
        "inner_state.count": 4 / SIZE,
        "inner_state.mu": 4.0,
        "inner_state.nu": 4.0,
    }


class Layer(NamedTuple):
    """Parameters in a NamedTuple."""

    weight: mx.array
    bias: mx.array


def test_namedtuples_of_parameters_are_not_taken_for_states():
    layer = Layer(mx.zeros((2, 2)), mx.zeros(2))
    for params in (layer, [layer, layer]):
        found = state_memory(scale_by_adam(), params)
        assert found == {"count": 4 / ps.tree.size(params), "mu": 4.0, "nu": 4.0}


def test_nothing_is_allocated():
    huge = {"w": mx.zeros((1 << 20, 1 << 20))}  # it would take 4 TiB
    assert state_memory(ps.optimizers.adam(1e-3), huge)["0.nu"] == 4.0


def test_params_without_elements_and_other_objects_are_refused():
    with pytest.raises(ValueError, match="state_memory: params .*one element"):
        state_memory(scale_by_adam(), {"w": mx.zeros((0, 3))})
    with pytest.raises(TypeError, match="state_memory: transform .* GradientTransform"):
        state_memory(scale_by_adam, PARAMS)
