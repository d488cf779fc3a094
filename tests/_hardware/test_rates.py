"""Measured rates count the right work, and refuse wrong arguments."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep._hardware import rates


def test_rates_are_work_by_the_median_time(monkeypatch):
    times = iter([1.0, 0.5, 0.1, 0.4, 0.2])  # two to choose the size, three timed
    monkeypatch.setattr(rates, "_timed", lambda run: mx.eval(run()) or next(times))
    found = ps.hardware.matmul_rate(mx.bfloat16, seconds=0.01)
    assert found == (2 * 256**3 / 0.2, 2 * 256**3, 3)
    times = iter([1.0, 0.5, 0.1, 0.4, 0.2])
    found = ps.hardware.copy_rate(seconds=0.01)
    assert found == (2 * 2**26 / 0.2, 2 * 2**26, 3)  # read and written


def test_a_fast_device_gets_larger_work(monkeypatch):
    monkeypatch.setattr(rates, "_SIZES", (8, 16, 32))
    monkeypatch.setattr(rates, "_LEAST", 2**20)
    monkeypatch.setattr(rates, "_MOST", 2**23)
    monkeypatch.setattr(rates, "_timed", lambda run: 1e-5)
    assert ps.hardware.matmul_rate(seconds=0.001).work == 2 * 32**3
    assert ps.hardware.copy_rate(seconds=0.001).work == 2 * 2**23
    assert ps.hardware.copy_rate(seconds=1.0).runs == 200


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="matmul_rate: dtype must be"):
        ps.hardware.matmul_rate(mx.int8)
    for measure in (ps.hardware.matmul_rate, ps.hardware.copy_rate):
        for seconds in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{measure.__name__}: seconds must be"):
                measure(seconds=seconds)


def test_a_dtype_by_name_is_refused():
    with pytest.raises(TypeError, match="matmul_rate: dtype must be an mx.Dtype, got str"):
        ps.hardware.matmul_rate("float32")
