"""Progress: a live line on a terminal, lines at milestones elsewhere, in any encoding."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from purestep._loop.callbacks.display import live as progress
from purestep._loop.callbacks.display.live import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    held = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: held.now)
    return held


def watch(console, clock, *, steps=10, every=5, step_seconds=1.0, pause_seconds=8.0, **options):
    """Run steps; return the time left that each step showed."""
    left = []
    with TrainingProgress(console, "text", steps, 0, every, 1000, **options) as shown:
        for number in range(1, steps + 1):
            clock.now += 30.0 if number == 1 else step_seconds  # the first step compiles
            shown.step_seconds()
            if number % every == 0:
                clock.now += pause_seconds
                shown.pause()
            shown.show(number, ["loss 1.000"], milestone=number % every == 0)
            left.append(shown._left)
    return left


def test_the_time_left_counts_the_measurements_to_come(clock):
    left = watch(Console(file=io.StringIO()), clock, pause_steps=4)
    # Two measurements to come, each guessed as four steps, then one timed at 8 s.
    assert left[1:4] == [8 + 2 * 4, 7 + 2 * 4, 6 + 2 * 4]
    assert left[4:9] == [5 + 8, 4 + 8, 3 + 8, 2 + 8, 1 + 8]
    assert left[9] == 0


def test_what_follows_the_last_step_counts(clock):
    left = watch(Console(file=io.StringIO()), clock, pause_seconds=0.0, after_steps=3)
    assert left[5:] == [4 + 3, 3 + 3, 2 + 3, 1 + 3, 3]


def test_the_time_left_runs_down_while_nothing_is_shown(clock):
    file = io.StringIO()
    shown = TrainingProgress(Console(file=file, force_terminal=True, width=80), "text", 10, 0, 5, 1000)
    for number in (1, 2):
        clock.now += 60
        shown.step_seconds()
        shown.show(number, [], milestone=False)
    assert "8:00 left" in shown._line().plain
    clock.now += 45
    assert "7:15 left" in shown._line().plain


def test_a_pipe_gets_a_line_a_milestone_and_no_escapes(clock):
    file = io.StringIO()
    watch(Console(file=file, width=20), clock)
    assert file.getvalue().splitlines() == [
        "text  5/10  0:13 left  loss 1.000  1.0k tok/s",
        "text 10/10  0:00 left  loss 1.000  1.0k tok/s",
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_keeps_one_line_that_its_encoding_can_show(clock, width, encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    environ = {"TERM": "xterm"}
    watch(Console(file=file, force_terminal=True, width=width, _environ=environ), clock)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert text.count("\n") == 1  # at its end
    sign = "━" if encoding == "utf-8" else "#"
    assert "text 10/10 " in text
    assert sign * 8 in text
    assert "0:00 left" in text


def test_a_dumb_terminal_is_treated_as_a_pipe(clock):
    file = io.StringIO()
    watch(Console(file=file, force_terminal=True, width=80, _environ={"TERM": "dumb"}), clock)
    assert file.getvalue().count("left") == 2
