"""The status line of a run and its remaining time, as functions of plain data."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

MARGIN = 5  # free columns, so that the ^C^C of a terminal does not wrap the line
LEAST_BAR, MOST_BAR = 8, 40


class StatusLine(NamedTuple):
    """One line in its parts.

    Attributes:
        head: the phase and the step.
        done: the part of the bar for the completed steps.
        ahead: the rest of the bar.
        tail: the time left and as many figures as fit.
    """

    head: str
    done: str
    ahead: str
    tail: str

    def __str__(self) -> str:
        """Return the whole line."""
        return "".join(self)


def status_line(
    width: int,
    name: str,
    step: int,
    total: int | None,
    seconds: float | None,
    figures: Sequence[str],
    *,
    signs: str = "━╌",
) -> StatusLine:
    """Lay out the status line for a terminal.

    The step, the bar and the time left are shown first; figures fill the remaining columns in order. Below
    about 40 columns the name is left out, then the bar.

    Args:
        width: the columns of the terminal; `MARGIN` of them stay free.
        name: the name of the phase.
        step: the number of completed steps.
        total: the number of all steps, at least 1; `None` shows neither a bar nor a time.
        seconds: the time left, `None` if it is not known yet.
        figures: texts such as `loss 1.234`.
        signs: the characters of the two parts of the bar.

    >>> print(status_line(60, "text", 120, 600, 42.0, ["loss 1.234", "val 1.300"], signs="#-"))
    text 120/600 #-------- 0:42 left  loss 1.234  val 1.300
    """
    room = max(width - MARGIN, 0)
    if total is None:
        return _open_line(room, name, step, figures)
    count, left = f"{step:>{len(str(total))}}/{total}", f"{clock(seconds)} left"
    head = f"{name} {count} "
    if len(head) + LEAST_BAR + 1 + len(left) > room:
        head = f"{count} "
    bar = room - len(head) - 1 - len(left)
    if bar < LEAST_BAR:
        return StatusLine(f"{count}  {left}"[:room], "", "", "")
    tail = f" {left}"
    for figure in figures:
        if bar - len(figure) - 2 < LEAST_BAR:
            break
        tail, bar = f"{tail}  {figure}", bar - len(figure) - 2
    bar = min(bar, MOST_BAR)
    full = bar * min(step, total) // total
    return StatusLine(head, signs[0] * full, signs[1] * (bar - full), tail)


def _open_line(room: int, name: str, step: int, figures: Sequence[str]) -> StatusLine:
    """Lay out the line of a run whose end is not known."""
    tail = ""
    for figure in figures:
        if len(name) + 1 + len(str(step)) + len(tail) + len(figure) + 2 > room:
            break
        tail = f"{tail}  {figure}"
    return StatusLine(f"{name} {step}"[:room], "", "", tail)


def clock(seconds: float | None) -> str:
    """Return a time as h:mm:ss or m:ss.

    >>> clock(42.4), clock(3723), clock(None)
    ('0:42', '1:02:03', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def is_milestone(step: int, total: int, every: int) -> bool:
    """Tell whether the state after a step is measured and saved: every `every` steps and at the end.

    >>> [step for step in range(1, 8) if is_milestone(step, 7, 3)]
    [3, 6, 7]
    """
    return step % every == 0 or step == total


def milestones_left(step: int, total: int, every: int) -> int:
    """Return the number of milestones after a step.

    >>> [milestones_left(step, 7, 3) for step in range(8)]
    [3, 3, 3, 2, 2, 2, 1, 0]
    """
    return 0 if step >= total else -(-total // every) - step // every


def pause_interval(start: int, first: int, last: int, count: int) -> int:
    """Return the steps from one measurement to the next, at least 1.

    Args:
        start: the number of steps before the run.
        first: the step of the first measurement.
        last: the step of the last one.
        count: the number of measurements so far, at least 1.

    >>> pause_interval(0, 100, 100, 1), pause_interval(1050, 1100, 1300, 3)
    (100, 100)
    """
    return max(1, first - start if count < 2 else round((last - first) / (count - 1)))


def typical(seconds: Sequence[float]) -> float | None:
    """Return the median time; the first, which may include compilation, counts only if it is alone.

    >>> typical([]), typical([9.0]), typical([9.0, 1.0]), typical([9.0, 1.0, 1.2, 30.0])
    (None, 9.0, 1.0, 1.2)
    """
    return statistics.median_low(seconds[1:] or seconds) if seconds else None


def seconds_left(
    step: float | None, steps: int, pause: float | None, pauses: int, pause_steps: float = 0.0
) -> float | None:
    """Return the estimated time of the remaining steps and measurements, in seconds.

    Args:
        step: the seconds of one step, `None` if no step was made.
        steps: the number of remaining steps.
        pause: the seconds of one measurement, `None` if no measurement was made.
        pauses: the number of remaining measurements.
        pause_steps: a guess of the time of a measurement, in steps, used if no measurement was made.

    >>> seconds_left(0.1, 100, 2.0, 3)
    16.0
    >>> seconds_left(0.1, 100, None, 3, pause_steps=10)
    13.0
    """
    if step is None:
        return None
    return steps * step + pauses * (pause_steps * step if pause is None else pause)
