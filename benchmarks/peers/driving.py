"""How a contestant of any framework is driven: started steps, bounded run-ahead, memory."""

import time
from collections import deque
from typing import Any

AHEAD = 1  # steps that may be started before the oldest one is waited for
WARM = 3  # steps before each turn that are not timed


class Driver:
    """A contestant in the worker's process. A subclass defines `start`, `wait`, `read`, and `peak_bytes`.

    The loop is the same for all: start a step, then wait for the step before it. So the device never waits
    for Python, and memory does not grow with the number of steps.
    """

    def start(self) -> Any:
        """Start a step; return what `wait` and `read` need."""
        raise NotImplementedError

    def wait(self, started: Any) -> None:
        """Wait until this step is done."""
        raise NotImplementedError

    def read(self, started: Any) -> list[float]:
        """Return the loss and the norm of the gradient of this step."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def reset_peak(self) -> None:
        """Forget the peak of memory so far, where the framework can."""

    def peak_bytes(self) -> int | None:
        """Return the peak of memory in bytes; `None` if the framework does not count it."""
        return None

    def release(self) -> None:
        """Give freed memory, which the framework keeps for later, back to the device."""

    def note(self) -> str:
        """Return what a reader of the table must know of this contestant."""
        return ""

    def run(self, steps: int) -> None:
        """Make so many steps and wait for the last."""
        self._ends(steps)

    def _ends(self, steps: int) -> list[float]:
        waiting: deque[Any] = deque()
        ends = []
        for left in reversed(range(steps)):
            waiting.append(self.start())
            while waiting and (len(waiting) > AHEAD or not left):
                self.wait(waiting.popleft())
                ends.append(time.perf_counter())
        self.synchronize()
        return ends

    def first(self, steps: int) -> dict[str, Any]:
        """Make the first steps; return the seconds of the first one, and loss and norm of each."""
        begin = time.perf_counter()
        made = [self.read(self.start())]
        seconds = time.perf_counter() - begin
        made += [self.read(self.start()) for _ in range(steps - 1)]
        self.synchronize()
        self.release()
        return {"seconds": seconds, "metrics": made, "note": self.note()}

    def seconds(self, steps: int) -> float:
        """Return the seconds of so many steps; then release the memory that others may need.

        The time is that from the end of the last warm step to the end of the last timed one. Steps are
        started before and after it, so that the device has work at both ends, as in a long run.
        """
        ends = self._ends(WARM + steps + AHEAD)
        self.release()
        return ends[WARM + steps - 1] - ends[WARM - 1]

    def peak(self, steps: int) -> int | None:
        """Return the peak of memory over so many warm steps."""
        self.reset_peak()
        self.run(steps)
        peak = self.peak_bytes()
        self.release()
        return peak
