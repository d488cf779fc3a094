"""The gradient noise scale, from the norms of gradients over batches of two sizes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, norms, tree
from purestep._steps.core.measuring import Measurement, Moment


def noise_scale(*, every: int = 1, name: str = "noise_scale") -> Measurement:
    """Measure the numerator and the denominator of the gradient noise scale, from the microbatches of a step.

    The simple noise scale `trace(S) / |G|^2` estimates the batch size, in rows of the batch, above which
    larger batches save few steps. `G` is the true gradient and `S` the covariance of the gradient of one
    row. With k microbatches of n / k rows, the squared norms of their gradients (weighted mean A) and that
    of the whole gradient (B) have the expectations `|G|^2 + k trace(S) / n` and `|G|^2 + trace(S) / n`. Both
    numbers are estimated without bias:

        name/noise:  trace(S) = n (A - B) / (k - 1)
        name/signal: |G|^2    = (k B - A) / (k - 1)

    A microbatch without weight, such as one of padding alone, does not count: k is the number of microbatches
    with weight, and n that of their rows. With fewer than two, both numbers are NaN.

    One step says little, and `signal` may be negative. Average both over many steps before dividing, with
    `NoiseScale`; the ratio of one step is biased, and no metric.

    Args:
        every: steps from one measurement to the next.
        name: the metrics are `name/noise` and `name/signal`.

    Raises:
        ValueError: from `train_step`, if it has one microbatch.

    Reference: McCandlish et al., An Empirical Model of Large-Batch Training, arXiv:1812.06162, appendix A.1.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: (params["w"] * batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = ps.train_step(loss_fn, transform, microbatches=2, measure=[noise_scale()])
    >>> metrics = step(state, {"x": mx.array([1.0, 3.0])})[1]
    >>> metrics["noise_scale/noise"], metrics["noise_scale/signal"]
    (array(2, dtype=float32), array(3, dtype=float32))
    """

    def measure(moment: Moment) -> dict[str, mx.array]:
        small, count = moment.small_square, moment.weighted_parts
        assert small is not None
        assert count is not None
        rows = tree.leaves(moment.batch)[0].shape[0] / moment.microbatches * count
        large = mx.square(norms.norm(moment.gradients))
        others = mx.where(count > 1, count - 1, mx.nan)
        return {"noise": rows * (small - large) / others, "signal": (count * large - small) / others}

    return Measurement(name, measure, every, small_squares=True)


class NoiseScale(NamedTuple):
    """Running averages of the numerator and the denominator of the noise scale: an immutable value.

    Begin with `NoiseScale()` and call `add` with the metrics of each step. The step keeps no averages: its
    logged metrics are enough to compute them again, over any window and after a run is resumed.

    >>> average = NoiseScale()
    >>> for noise, signal in [(8.0, 3.0), (4.0, -1.0), (6.0, 1.0)]:
    ...     average = average.add({"noise_scale/noise": noise, "noise_scale/signal": signal})
    >>> round(average.value, 2)
    6.07

    Attributes:
        noise: the decayed sum of the numerators.
        signal: the decayed sum of the denominators.
        decay: in [0, 1): the weight of the earlier steps; 0.98 averages over about 50 measurements.
    """

    noise: float = 0.0
    signal: float = 0.0
    decay: float = 0.98

    def add(self, metrics: Mapping[str, Any], name: str = "noise_scale") -> "NoiseScale":
        """Return the averages with one more step.

        Metrics without the measurement change nothing, and neither does a number that is not finite.

        Args:
            metrics: the metrics of a step, or a row of figures. Reading arrays waits for the device.
            name: the name of the measurement.
        """
        checks.number("NoiseScale", "decay", self.decay, least=0.0, below=1.0)
        if f"{name}/noise" not in metrics:
            return self
        noise, signal = float(metrics[f"{name}/noise"]), float(metrics[f"{name}/signal"])
        if not (math.isfinite(noise) and math.isfinite(signal)):
            return self
        return self._replace(noise=self.decay * self.noise + noise, signal=self.decay * self.signal + signal)

    @property
    def value(self) -> float:
        """The noise scale, in rows of a batch; infinite while the averaged signal is not positive."""
        return self.noise / self.signal if self.signal > 0 else float("inf")
