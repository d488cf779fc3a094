"""`throughput`: steps, samples and tokens a second, and the use of the device's peak."""

from collections.abc import Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.callbacks.rates import Metered
from purestep._loop.core.history import History
from purestep._loop.core.progress import Monitor, Progress, Request, Run, Stop


class Throughput(Metered, Monitor):
    """Measures rates; `throughput` makes it.

    Attributes:
        rates: `steps_per_second`, `samples_per_second` and, for data with tokens, `tokens_per_second` since
            the row before the last one; with the FLOP of a step or token, also `flops_per_second`, `mfu` if
            the peak is known, and `flops` of the whole run. Empty before the first row; without the rates if
            no step since the row before counts.
        history: the rates of each row of this process.
    """

    def __init__(
        self,
        *,
        flops_per_step: float | None = None,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        flops_budget: float | None = None,
    ):
        super().__init__()
        self.history = History()
        self._per_step, self._per_token = flops_per_step, flops_per_token
        self._peak, self._budget = peak_flops, flops_budget
        self._spent, self._restored, self._measured = 0.0, False, -1

    def on_train_begin(self, run: Run) -> Stop | None:
        """Start anew; ask to stop if the run that is resumed had spent the budget."""
        super().on_train_begin(run)
        if not self._restored:
            self._spent = 0.0
        self._restored, self._measured = False, -1
        return self._decision()

    def figures(self, progress: Progress) -> Mapping[str, float]:
        """Return the rates since the row before."""
        super().on_step_end(progress)
        self._measured = progress.step
        self._add_flops(progress)
        self.history.log(progress.step, self.rates)
        return self.rates

    def on_step_end(self, progress: Progress) -> Request:
        """Count the step; ask to stop if the budget is spent."""
        if progress.step != self._measured:
            if progress.row is None:
                super().on_step_end(progress)
            else:
                self.figures(progress)
        self._spent = self._flops(progress)
        return self._decision()

    def passed(self, progress: Progress) -> None:
        """Count the step."""
        super().passed(progress)
        self._spent = self._flops(progress)

    def state(self) -> dict[str, Any]:
        """Return the FLOP so far, if there is a budget."""
        return {} if self._budget is None else {"flops": self._spent}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue the count of the run that is resumed."""
        self._spent, self._restored = float(saved["flops"]), True

    def _flops(self, progress: Progress) -> float:
        """Return the FLOP of all steps, those before a resumed run included."""
        if self._per_step is not None:
            return self._per_step * progress.step
        return (self._per_token or 0.0) * progress.tokens

    def _add_flops(self, progress: Progress) -> None:
        per = self._per_step if self._per_step is not None else self._per_token
        name = "steps_per_second" if self._per_step is not None else "tokens_per_second"
        if per is None:
            return
        if name in self.rates:
            rate = per * self.rates[name]
            self.rates["flops_per_second"] = rate
            if self._peak is not None:
                self.rates["mfu"] = rate / self._peak
        self.rates["flops"] = self._flops(progress)

    def _decision(self) -> Stop | None:
        if self._budget is None or self._spent < self._budget:
            return None
        return Stop(f"the budget of {self._budget:.4g} FLOP is spent: {self._spent:.4g}")


def throughput(
    *,
    flops_per_step: float | None = None,
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    flops_budget: float | None = None,
) -> Throughput:
    """Measure steps, samples and tokens a second at each row, and model FLOP utilization (MFU).

    Steps that follow an evaluation or a checkpoint, the first step of the process and the last one do not
    count: their time is hidden or not their own. A row without other steps has no rates. Tokens include
    padding. The figures are added to the rows, so `log`, `jsonl` and trackers show them. A run that spent
    its budget is not continued when it is started again.

    Args:
        flops_per_step: FLOP of a step, such as `ps.metrics.step_flops(step, state, batch)`.
        flops_per_token: FLOP of a token, in place of `flops_per_step`, such as
            `ps.metrics.transformer_flops(...)`.
        peak_flops: FLOP per second that the device can do in the dtype of its products. `mfu` is the FLOP per
            second that the run makes, divided by this. `None`, if it is not known: there is no `mfu`.
        flops_budget: FLOP after which the run stops.

    Raises:
        ValueError: if both `flops_per_step` and `flops_per_token` are given; if a peak or a budget is given
            without either.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> meter = throughput(flops_per_step=1e6, flops_budget=1.5e7)
    >>> step = ps.train_step(loss_fn, transform)
    >>> result = ps.fit(step, state, [{"x": mx.ones(8)}], steps=20, callbacks=[meter])
    >>> result.reason
    'the budget of 1.5e+07 FLOP is spent: 1.5e+07'
    >>> sorted(meter.rates)
    ['flops', 'flops_per_second', 'samples_per_second', 'steps_per_second']
    """
    caller = "throughput"
    given = {
        "flops_per_step": flops_per_step,
        "flops_per_token": flops_per_token,
        "peak_flops": peak_flops,
        "flops_budget": flops_budget,
    }
    numbers: dict[str, Any] = {
        name: None if value is None else float(checks.number(caller, name, value, above=0))
        for name, value in given.items()
    }
    if flops_per_step is not None and flops_per_token is not None:
        raise checks.error(caller, "flops_per_step must be left out if flops_per_token is given")
    if flops_per_step is None and flops_per_token is None:
        for name in ("peak_flops", "flops_budget"):
            if given[name] is not None:
                raise checks.error(caller, f"{name} needs flops_per_step or flops_per_token")
    return Throughput(**numbers)
