"""`log`: one line a row."""

import logging
from collections.abc import Callable, Mapping

from purestep._core.escaping import printable
from purestep._loop.callbacks.output import Guarded, print_line
from purestep._loop.callbacks.rates import Metered, shown
from purestep._loop.core.progress import Progress


def line(step: int, steps: int | None, figures: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """Return the line of a row, without the figures of single layers.

    >>> figures = {"loss": 1.23456, "learning_rate": 0.005, "grad_norms/layers.0": 0.5}
    >>> line(120, 600, figures, {"steps_per_second": 12.3})
    'step 120/600  loss 1.235  learning_rate 5.0e-03  12.3 steps/s'
    """
    count = f"step {step}" if steps is None else f"step {step:>{len(str(steps))}}/{steps}"
    texts = [f"{name} {number(value)}" for name, value in figures.items() if is_brief(name)]
    return "  ".join([count, *texts, *shown(rates)])


def is_brief(name: str) -> bool:
    """Return whether a figure has a place in a line: a name with a slash is one of a group, such as a layer.

    >>> is_brief("loss"), is_brief("grad_norms/layers.0")
    (True, False)
    """
    return "/" not in name


def number(value: float) -> str:
    """Return a figure with four digits.

    >>> number(1.23456), number(0.0), number(5e-3), number(123456.0), number(float("nan"))
    ('1.235', '0', '5.0e-03', '1.2e+05', 'nan')
    """
    if value != value or value == 0.0:
        return "nan" if value != value else "0"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10_000 else f"{value:.1e}"


class Log(Metered):
    """Writes a line for each row and each evaluation; `log` makes it."""

    def __init__(self, write: Callable[[str], object]):
        super().__init__()
        self._write = write

    def on_step_end(self, progress: Progress) -> None:
        """Write the line of a row."""
        super().on_step_end(progress)
        if progress.row is not None:
            self._write(printable(line(progress.step, progress.steps, progress.row, self.rates)))

    def on_eval_end(self, progress: Progress) -> None:
        """Write the line of an evaluation, and its texts."""
        if progress.evaluated:
            self._write(printable(line(progress.step, progress.steps, progress.evaluated, {})))
        for name, texts in progress.texts.items():
            for text in texts:
                self._write(printable(f"step {progress.step}  {name}: {text}"))
        super().on_eval_end(progress)


def log(write: Callable[[str], object] | logging.Logger | None = None) -> Log:
    """Write one line for each row and each evaluation.

    Figures with a slash in their name, such as `grad_norms/layers.0` of a measurement, are left out:
    trackers, `jsonl` and the history have them. Control characters are escaped. Rows come every `log_every`
    steps of `fit`.

    Args:
        write: `write(line)`, or a `logging.Logger`, which logs at level INFO. By default lines are printed
            and flushed, and characters that the output cannot encode are escaped. If the output is closed or
            full, there is one `MetricsWarning`.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> lines = []
    >>> step = ps.train_step(loss_fn, transform)
    >>> result = ps.fit(step, state, [{"x": mx.ones(1)}], callbacks=[log(lines.append)])
    >>> lines
    ['step 1  loss 1.000  grad_norm 2.000  learning_rate 0.250']
    """
    if isinstance(write, logging.Logger):
        return Log(write.info)
    return Log(Guarded("log", "standard output", print_line) if write is None else write)
