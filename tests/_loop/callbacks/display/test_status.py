"""The status line at every width; the time left includes measurements."""

import pytest

from purestep._loop.callbacks.display.status import (
    LEAST_BAR,
    clock,
    is_milestone,
    milestones_left,
    seconds_left,
    status_line,
    typical,
)
from purestep.demos import mtp

FIGURES = ["loss 1.234", "val 1.300", "lr 5.0e-03", "|g| 0.70", "24.0k tok/s"]
NAMES = ["text", "grpo", "reference (1 of 2)", "teacher (1 of 3)", f"{mtp.phases()[-1]} (10 of 10)"]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("step", "total"), [(0, 1), (599, 600), (20_000, 20_000)])
def test_step_bar_and_time_left_always_have_a_place(width, name, step, total):
    line = status_line(width, name, step, total, 3723.0, FIGURES)
    assert str(line).startswith(f"{name} ")
    assert f"{step}/{total} " in line.head
    assert len(line.done + line.ahead) >= LEAST_BAR
    assert line.tail.startswith(" 1:02:03 left")
    # Room for ^C^C, which must not push the line into the next.
    assert len(str(line)) + 4 < width


def test_figures_come_in_their_order_as_far_as_they_fit():
    shown = [
        str(status_line(width, "text", 1, 600, 42.0, FIGURES)).split("left")[1] for width in (60, 80, 120)
    ]
    assert shown[0].split("  ") == ["", *FIGURES[:2]]
    assert shown[1].split("  ") == ["", *FIGURES[:3]]
    assert shown[2].split("  ") == ["", *FIGURES]


def test_the_bar_is_full_at_the_end_alone():
    for step in range(601):
        line = status_line(80, "text", step, 600, 1.0, [])
        assert bool(line.ahead) == (step < 600)
        assert len(line.done) == len(line.done + line.ahead) * step // 600


@pytest.mark.parametrize("width", range(0, 60))
def test_a_terminal_too_narrow_gets_what_fits(width):
    line = str(status_line(width, "text", 120, 600, 42.0, FIGURES))
    assert len(line) <= max(width - 5, 0)
    if width >= 24:
        assert "120/600" in line
        assert "0:42 left" in line


def test_a_clock_carries_over():
    assert [clock(seconds) for seconds in (0, 59.4, 59.6, 3599.6, -3.0)] == [
        "0:00", "0:59", "1:00", "1:00:00", "0:00",
    ]  # fmt: skip


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("every", [1, 2, 3, 8, 100])
def test_milestones_left_are_those_that_will_come(total, every):
    for step in range(total + 1):
        to_come = sum(is_milestone(later, total, every) for later in range(step + 1, total + 1))
        assert milestones_left(step, total, every) == to_come


def test_the_time_left_is_that_of_steps_and_of_measurements():
    assert seconds_left(None, 10, None, 1) is None
    assert seconds_left(0.5, 10, 4.0, 2) == 10 * 0.5 + 2 * 4.0
    assert seconds_left(0.5, 10, None, 2, pause_steps=16) == 10 * 0.5 + 2 * 16 * 0.5
    assert seconds_left(0.5, 0, 4.0, 0) == 0


def test_what_compiles_or_stalls_does_not_count():
    assert typical([20.0, 0.1, 0.1, 0.1]) == 0.1
    assert typical([20.0, 0.1]) == 0.1
    assert typical([20.0, 0.1, 9.0, 0.1, 0.2]) == 0.1
