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


def test_the_default_budget_is_the_limit_of_the_machine_else_all_of_it(monkeypatch):
    found = ps.hardware.memory()
    known = found.limit or found.total
    monitor = ps.callbacks.memory()
    row = watched(monitor)[-1]
    assert (known is None) == ("memory_available_gb" not in row)
    for limit, total, budget in ((10**12, 4 * 10**12, 1000), (None, 4 * 10**12, 4000)):
        other = found._replace(limit=limit, total=total)
        monkeypatch.setattr(machine, "memory", lambda other=other: other)
        monitor = ps.callbacks.memory()
        row = watched(monitor)[-1]
        assert row["memory_available_gb"] == budget - row["memory_active_gb"]
        assert row["memory_percent"] == pytest.approx(100 * row["memory_peak_gb"] / budget)
        assert monitor.use.available == budget * 10**9 - monitor.use.active
    monkeypatch.setattr(machine, "memory", lambda: found._replace(limit=None, total=None))
    monitor = ps.callbacks.memory()
    assert {"memory_percent", "memory_available_gb"} & set(watched(monitor)[-1]) == set()
    assert monitor.use.available is None


def test_an_array_that_is_held_is_not_available():
    held, monitor = mx.zeros(32 * MB // 4), ps.callbacks.memory(budget=1e9)
    before = watched(monitor)[-1]["memory_available_gb"]
    mx.eval(held)
    assert before - watched(monitor)[-1]["memory_available_gb"] == pytest.approx(32 * MB / 1e9, rel=1e-3)
    with pytest.warns(ps.callbacks.MemoryWarning):
        assert watched(ps.callbacks.memory(budget=1.0))[-1]["memory_available_gb"] == 0


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
