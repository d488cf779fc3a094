"""A thread that works on one thing after another."""

import threading

from purestep._checkpoint.disk.line import Line
from tests._checkpoint.damage import raising


def test_a_line_works_in_order_and_without_a_thread_too(monkeypatch):
    for number in range(2):
        with Line(lambda x: 2 * x) as line:
            for item in range(5):
                line.give(item)
        assert line.results() == [0, 2, 4, 6, 8], number
        monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("no")))
