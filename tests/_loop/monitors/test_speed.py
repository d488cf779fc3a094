"""`throughput`: rates, MFU and a budget of FLOP."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep._loop.core.progress import Progress
from purestep._loop.monitors.speed import Throughput
from tests._loop.workload import STEP, At, batch_of, start
from tests.refusals import BAD_NUMBERS, parts


def moment(step, *, row=True, tokens=0, seconds=0.5):
    """Return the progress after a step; each takes so many seconds."""
    return Progress(
        step, None, 0, None, None, {}, {"loss": 1.0} if row else None, {}, None, {}, None,
        8 * step, tokens * step, seconds * step,
    )  # fmt: skip


def test_mfu_is_the_flop_rate_over_the_peak():
    """Two steps a second of 3 GFLOP on a device of 24 GFLOP/s: a quarter."""
    meter = Throughput(flops_per_step=3e9, peak_flops=24e9)
    for step in (1, 2, 3, 4):
        meter.on_step_end(moment(step, row=step == 4))
    assert meter.rates["flops_per_second"] == pytest.approx(6e9)
    assert meter.rates["mfu"] == pytest.approx(0.25)
    assert meter.rates["flops"] == pytest.approx(12e9)
    assert meter.history.column("mfu") == ([4], [pytest.approx(0.25)])


def test_flop_of_tokens():
    """100 tokens a step of 0.5 s, of 1 MFLOP each."""
    meter = Throughput(flops_per_token=1e6, peak_flops=1e9)
    for step in (1, 2, 3):
        meter.on_step_end(moment(step, row=step == 3, tokens=100))
    assert (meter.rates["flops_per_second"], meter.rates["mfu"]) == pytest.approx((2e8, 0.2))
    assert meter.rates["flops"] == pytest.approx(3e8)


def test_an_unknown_peak_gives_no_mfu():
    meter = Throughput(flops_per_step=1.0, peak_flops=None)
    for step in (1, 2):
        meter.on_step_end(moment(step, seconds=1.0))
    assert "mfu" not in meter.rates
    assert meter.rates["flops_per_second"] == pytest.approx(1.0)


def test_all_callbacks_see_the_figures_in_rows_whatever_their_order():
    seen = []
    meter = ps.callbacks.throughput(flops_per_step=10.0, peak_flops=1e12)
    result = ps.fit(
        STEP, start(), At(), steps=6, log_every=2,
        callbacks=[lambda progress: seen.append(progress.row), meter],
    )  # fmt: skip
    rows = [row for row in seen if row is not None]
    assert [row["flops"] for row in rows] == [20.0, 40.0, 60.0]
    assert all(row["mfu"] == row["flops_per_second"] / 1e12 for row in rows[1:])
    assert "mfu" not in result.history.names  # it would differ when the run is repeated


def test_a_monitor_replaces_no_metric():
    class Wrong(ps.callbacks.Monitor):
        def figures(self, progress):
            return {"loss": -1.0, "wrong": 2}

    seen = []
    result = ps.fit(
        STEP, start(), At(), steps=4, log_every=2,
        callbacks=[ps.callbacks.every(4, Wrong()), lambda progress: seen.append(progress.row)],
    )  # fmt: skip
    assert ("wrong" in seen[1], seen[3]["wrong"]) == (False, 2)
    assert [seen[1]["loss"], seen[3]["loss"]] == result.history.column("loss")[1]


@pytest.mark.parametrize("log_every", [1, 100])
def test_the_run_ends_when_the_budget_is_spent_and_is_not_continued(log_every, tmp_path):
    def fitted(budget, **options):
        with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
            meter = ps.callbacks.throughput(flops_per_step=2.0, flops_budget=budget)
            return ps.fit(
                STEP,
                start(),
                At(),
                steps=20,
                checkpointer=checkpointer,
                callbacks=[meter],
                log_every=log_every,
            )

    result = fitted(9.0)
    assert (result.steps, result.reason) == (5, "the budget of 9 FLOP is spent: 10")
    assert fitted(9.0).steps == 5
    assert fitted(20.0).steps == 10
    assert fitted(1e9).reason == "steps"


def test_a_budget_of_tokens_counts_those_before_a_resumed_run(tmp_path):
    batches = [{**batch_of(number), "tokens": mx.zeros((2, 8), mx.int32)} for number in range(20)]

    def fitted(steps):
        with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
            meter = ps.callbacks.throughput(flops_per_token=1.0, flops_budget=16 * 6)
            return ps.fit(STEP, start(), batches, steps=steps, checkpointer=checkpointer, callbacks=[meter])

    assert fitted(4).reason == "steps"
    assert fitted(20).steps == 6


@pytest.mark.parametrize("name", ["flops_per_step", "flops_per_token", "peak_flops", "flops_budget"])
@pytest.mark.parametrize(
    ("value", "error", "said"), [case for case in BAD_NUMBERS if case[0] is not None and case[0] is not True]
)
def test_bad_numbers_are_refused(name, value, error, said):
    with pytest.raises(error, match=parts(f"throughput: {name} {said}")):
        ps.callbacks.throughput(**{name: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flops_per_step": 1.0, "flops_per_token": 1.0}, "flops_per_step ... flops_per_token"),
        ({"peak_flops": 1.0}, "peak_flops ... flops_per_step or flops_per_token"),
        ({"flops_budget": 1.0}, "flops_budget ... flops_per_step or flops_per_token"),
        ({"flops_per_step": 0}, "flops_per_step ... greater than 0, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=parts(f"throughput: {said}")):
        ps.callbacks.throughput(**options)
