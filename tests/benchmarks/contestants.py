"""What the tests of benchmarks run: objects for worker processes and a benchmark, without measurements."""

import os
import time
import types

from benchmarks.harness import Panel, bars

FACTS = {"device": "cpu", "cores": 2, "load": 0.1}


def fake(measure, missed=()):
    """Return a benchmark that needs no measurement."""
    made = types.ModuleType("benchmarks.fake", "A benchmark that needs no measurement.")
    made.__dict__.update(
        add_arguments=lambda parser: parser.add_argument("--rounds", type=int, default=2),
        measure=measure,
        show=lambda found: f"seconds {found['seconds']}",
        panels=lambda found: [Panel("Step", "ms", bars(found["seconds"], "a"))],
        missed=lambda found: list(missed),
    )
    return made


def whole(options, record, limit):
    record.keep(facts=dict(FACTS), seconds={"a": [1.0] * options.rounds, "b": [2.0] * options.rounds})


class Sleeper:
    """Answers, fails, dies or sleeps."""

    def __init__(self, answer=1.0):
        self.answer = answer

    def seconds(self, steps):
        return self.answer * steps

    def add(self, a, b):
        return a + b

    def variable(self, name):
        return os.environ.get(name)

    def fails(self):
        raise ValueError("as it should")

    def dies(self):
        os._exit(3)

    def sleeps(self, seconds):
        time.sleep(seconds)
        return seconds


class Refuses:
    """Cannot be built."""

    def __init__(self):
        raise RuntimeError("no such device")


class Writes:
    """Leaves a file when it is built."""

    def __init__(self, place):
        place.touch()
