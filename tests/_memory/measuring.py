"""Peaks by MLX's own count."""

import mlx.core as mx
import pytest

import purestep as ps

on_cpu = pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="a GPU takes other memory")


def measured(make, steps=3):
    """Return the highest measured peak of steps that are evaluated one after the other."""
    step, state, batch = make()
    step = ps.compiled(step)
    mx.eval(state, batch)
    peaks = []
    for _ in range(steps):
        mx.synchronize()
        mx.reset_peak_memory()
        state, metrics = step(state, batch)
        mx.eval(state, metrics)
        peaks.append(mx.get_peak_memory())
    return max(peaks)


def taken(function, *arrays):
    """Return the peak of an evaluation of `function(*arrays)`, above what is there before."""
    mx.eval(arrays)
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(function(*arrays))
    return mx.get_peak_memory() - before
