"""Objects that the tests' workers build in their processes: no framework, no measurement."""

import os
import time


class Sleeper:
    """Answers, fails, dies or sleeps."""

    def __init__(self, answer=1.0):
        self.answer = answer

    def seconds(self, steps, release=False):
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
