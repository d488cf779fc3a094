"""`memory`: figures of MLX, the peak of the run alone, and one warning."""

import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep._hardware import machine
from tests._loop.workload import STEP, At, start
from tests.refusals import parts

MB = 2**20


def watched(monitor, *, size=0, steps=6):
    """Train with a step that also holds an array of so many bytes while it runs; return the rows."""
    rows = []
    mx.reset_peak_memory()

    def step(state, batch):
        state, metrics = STEP(state, batch)
        if size:
            big = mx.zeros(size // 4)
            mx.eval(big)
            metrics["held"] = big[0]
            mx.eval(metrics)
        return state, metrics

    ps.fit(
        step, start(), At(), steps=steps, log_every=2, prefetch=0,
        callbacks=[monitor, lambda progress: rows.append(progress.row) if progress.row else None],
    )  # fmt: skip
    return rows


def test_the_rows_have_what_mlx_says():
    rows = watched(ps.callbacks.memory(budget=1e9), size=64 * MB)
    for row in rows:
        assert row["memory_peak_gb"] >= 64 * MB / 1e9 > row["memory_active_gb"] > 0
        assert row["memory_available_gb"] == pytest.approx(1 - row["memory_active_gb"])
        assert row["memory_percent"] == pytest.approx(100 * row["memory_peak_gb"])
        assert row["memory_cache_gb"] >= 0


def test_a_peak_before_the_run_is_not_that_of_the_run():
    big = mx.zeros(256 * MB // 4)
    mx.eval(big)
    del big
    assert mx.get_peak_memory() > 256 * MB
    monitor = ps.callbacks.memory(budget=1e9)
    ps.fit(STEP, start(), At(), steps=4, callbacks=[monitor])
    assert monitor.use.peak < 256 * MB


def test_the_warning_comes_once_and_before_the_budget_is_hit():
    budget = 1.05 * (64 * MB + mx.get_active_memory())
    with pytest.warns(
        ps.callbacks.MemoryWarning, match=r"step 2 needed .* % of the budget of 0\.0.* GB"
    ) as found:
        rows = watched(ps.callbacks.memory(budget=budget), size=64 * MB)
    assert len(found) == 1
    assert rows[0]["memory_percent"] < 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(ps.callbacks.memory(budget=10 * budget), size=64 * MB)


def test_the_budget_is_the_limit_that_the_hardware_reports(monkeypatch):
    """That of a container too; without a limit there is no budget."""
    monkeypatch.setattr(machine, "backend", lambda: "cpu")
    monkeypatch.setattr(machine, "_physical", lambda: 2 * 10**12)
    monkeypatch.setattr(machine, "_container", lambda: None)
    row = watched(ps.callbacks.memory())[-1]
    assert {"memory_percent", "memory_available_gb"} & set(row) == set()
    monkeypatch.setattr(machine, "_container", lambda: 10**12)
    assert watched(ps.callbacks.memory())[-1]["memory_available_gb"] == pytest.approx(1000, rel=0.01)
    monkeypatch.setattr(machine, "backend", lambda: "metal")
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10**11})
    assert watched(ps.callbacks.memory())[-1]["memory_available_gb"] == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0}, "budget ... greater than 0, got 0"),
        ({"warn_at": 1.5}, "warn_at ... at most 1, got 1.5"),
    ],
)
def test_bad_numbers_are_refused(options, said):
    with pytest.raises(ValueError, match=parts(f"memory: {said}")):
        ps.callbacks.memory(**options)
