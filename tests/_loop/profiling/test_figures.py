"""The figures of a profile against numpy, and its table."""

import numpy as np
import pytest

from purestep._loop.profiling.clock import StepTimes
from purestep._loop.profiling.figures import limit, names_in, quantile, summary, table


def rows_of(count=10, seed=0):
    drawn = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        parts = {name: float(drawn.exponential()) for name in ("other", "wait", "data")}
        if number % 5 == 0:
            parts["evaluation"] = 5.0
        rows.append(StepTimes(number + 4, sum(parts.values()), parts))
    return rows


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_quantiles_are_those_of_numpy(count, share):
    values = np.random.default_rng(count).normal(size=count).tolist()
    assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_the_summary_is_that_of_numpy_and_its_shares_add_up():
    rows = rows_of()
    found = summary(rows)
    evaluation = np.array([row.parts.get("evaluation", 0.0) for row in rows])
    whole = sum(row.seconds for row in rows)
    assert found["evaluation"] == pytest.approx(
        (evaluation.sum() / whole, np.median(evaluation), *np.quantile(evaluation, [0.1, 0.9]), 5.0, 1.0)
    )
    assert sum(part.share for name, part in found.items() if name != "step") == pytest.approx(1.0)
    assert found["step"].mean == pytest.approx(whole / len(rows))
    assert summary([]) == {}


def test_parts_stand_in_the_order_of_a_step_own_ones_after_them_and_other_last():
    row = StepTimes(1, 4.0, {"other": 1.0, "mine": 1.0, "wait": 1.0, "data": 1.0})
    assert names_in([row]) == ["data", "wait", "mine", "other"]


def of(**parts):
    return summary([StepTimes(4, sum(parts.values()), parts)])


def test_the_limit_adds_up_what_belongs_together():
    assert limit(of(wait=3.0, queue=3.0, data=4.0)).startswith("Largest: wait for the device, 60 %. The dev")
    assert limit(of(build=2.5, dispatch=2.5, wait=4.0)).startswith("Largest: build and dispatch, 56 %.")
    assert limit(of(data=2.0, wait=1.0)) == "Largest: data, 67 %. The source of the batches is the limit."
    assert limit(of(callbacks=1.0)) == "Largest: callbacks, 100 %."


def test_the_table_says_how_many_steps_it_has_and_gives_the_first_one_apart():
    rows = rows_of(4)
    first = StepTimes(1, 0.5, {"build": 0.3, "queue": 0.2}, traces=1)
    text = table(first, rows, 10)
    assert "4 steps of 10 asked for, from step 4 to 7" in text
    assert text.splitlines()[-1] == "first step: 500.0 ms (build with trace 300.0, queue or compilers 200.0)"
    assert "traced in" not in text
    assert "traced in 2 of" in table(first, [row._replace(traces=row.step % 2) for row in rows], 4)
    assert table(None, [], 10) == "no step was measured, 10 asked for"
