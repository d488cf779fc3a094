"""`memory`: the memory of a run, and a warning before a budget is hit."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._hardware import machine
from purestep._loop.core.progress import Monitor, Progress, Run, Stop

_GB = 1e9


class MemoryWarning(UserWarning):
    """A run uses nearly all of its memory budget."""


class Use(NamedTuple):
    """Bytes of memory.

    Attributes:
        active: of arrays.
        peak: the most that were active at once, in this run.
        cache: freed, and kept by MLX for new arrays.
        available: of the budget, without the active; `None` without a budget.
    """

    active: int
    peak: int
    cache: int
    available: int | None = None


def figures_of(use: Use, budget: float | None) -> dict[str, float]:
    """Return the figures of a row, in GB of 1e9 bytes.

    >>> figures_of(Use(3 * 10**9, 6 * 10**9, 10**9, 21 * 10**9), 24e9)["memory_percent"]
    25.0
    """
    found = {
        "memory_active_gb": use.active / _GB,
        "memory_peak_gb": use.peak / _GB,
        "memory_cache_gb": use.cache / _GB,
    }
    if budget is not None:
        assert use.available is not None
        found["memory_available_gb"] = use.available / _GB
        found["memory_percent"] = 100.0 * use.peak / budget
    return found


class Memory(Monitor):
    """Measures memory; `memory` makes it.

    Attributes:
        use: at the last row.
    """

    def __init__(self, budget: float | None, warn_at: float):
        self._budget, self._warn_at = budget, warn_at
        self._before, self._most, self._warned = 0, 0, False
        self.use: Use | None = None

    def on_train_begin(self, run: Run) -> Stop | None:
        """Note the peak before the run, which is not that of the run."""
        self._before, self._most, self._warned = mx.get_peak_memory(), 0, False

    def figures(self, progress: Progress) -> Mapping[str, float]:
        """Return the figures; warn if the peak is near the budget."""
        active, peak = mx.get_active_memory(), mx.get_peak_memory()
        # A peak that is that of before the run says only that the run needed no more.
        self._most = max(self._most, active, peak if peak != self._before else 0)
        budget = self._budget
        available = None if budget is None else max(0, int(budget) - active)
        self.use = use = Use(active, self._most, mx.get_cache_memory(), available)
        if budget is not None and use.peak >= self._warn_at * budget and not self._warned:
            self._warned = True
            needed, percent = f"{use.peak / _GB:.3g} GB", f"{100 * use.peak / budget:.0f} %"
            message = (
                f"memory: step {progress.step} needed {needed}, {percent} of the budget of "
                f"{budget / _GB:.3g} GB. Use smaller batches, more microbatches or ps.layers.recompute"
            )
            warnings.warn(message, MemoryWarning, stacklevel=2)
        return figures_of(use, budget)


def memory(*, budget: float | None = None, warn_at: float = 0.9) -> Memory:
    """Measure the memory of arrays at each row; warn once before a budget is hit.

    The rows have `memory_active_gb`, `memory_peak_gb` and `memory_cache_gb`, and with a budget
    `memory_available_gb` (without the active) and `memory_percent` (of the peak). The peak is the most that
    was active at once since the run began: within a step more is active than between two. MLX frees its cache
    before it needs more than its limit, so the cache does not count. The device is not waited for.
    MLX counts one peak for the process: if more was active before the run than in it, call
    `mx.reset_peak_memory()` before the run to see the peak of its steps.

    Args:
        budget: bytes, such as `24e9`. `None` takes the `limit` of `ps.hardware.memory()`, which is what
            Metal recommends or the container allows, else its `total`. If neither is known, there is no
            budget.
        warn_at: the part of the budget at which the warning is given, in (0, 1].

    Warns:
        MemoryWarning: once, when the peak reaches this part of the budget.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step, watched = ps.train_step(loss_fn, transform), memory(budget=24e9)
    >>> result = ps.fit(step, state, [{"x": mx.ones(8)}], steps=20, callbacks=[watched])
    >>> 0 < watched.use.active <= watched.use.peak < 24e9
    True
    """
    if budget is None:
        found = machine.memory()
        known = found.limit or found.total
        budget = None if known is None else float(known)
    else:
        budget = float(checks.number("memory", "budget", budget, above=0))
    return Memory(budget, float(checks.number("memory", "warn_at", warn_at, above=0, most=1)))
