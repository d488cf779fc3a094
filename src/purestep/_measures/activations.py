"""Statistics of the outputs of layers: norms, means, sparsity and dead units."""

import math
from collections.abc import Iterable, Sequence

import mlx.core as mx

from purestep._core import checks, sums
from purestep._layers.observing import Statistics, Watch
from purestep._measures.groups import natural
from purestep._steps.core.measuring import Measurement, Moment


def activations(
    patterns: str | Sequence[str], *, eps: float = 1e-3, every: int = 1, name: str = "activations"
) -> Measurement:
    """Measure the outputs of the layers of a module, in the forward pass that the step makes anyway.

    The module must come from `ps.functional`, and is not changed. The statistics are those of the whole
    batch, over all microbatches and all calls of a layer, in training mode. A row is one vector along the
    last axis, such as a token. For each layer:

    - `name/layer/norm`: the mean Euclidean norm of a row.
    - `name/layer/gain`: the sum of the norms of the rows of the output, divided by that of the rows of the
      first argument; it is missing if that is not a floating-point array.
    - `name/layer/mean`: the mean of all elements.
    - `name/layer/sparsity`: the share of elements with an absolute value of at most `eps`.
    - `name/layer/dead`: the share of units (indices of the last axis) without an element above `eps` in
      absolute value in the batch.

    If a layer returns several arrays, its first floating-point array counts. A layer that `remat` recomputes
    is measured once, in the first forward pass; so are the layers within it.

    Args:
        patterns: paths of layers, as in `module.named_modules()`; `*` is any text. `"*"` matches all layers,
            and `""` the module itself. A layer in several places of the module has its first path only.
        eps: the bound of `sparsity` and `dead`, at least 0.
        every: steps from one measurement to the next.
        name: the beginning of the names of the metrics.

    Raises:
        ValueError: in the first step, for a pattern that matches no layer that is called; if two
            modules of the loss have a layer of one path; for a layer that runs under `mx.vmap` within the
            loss function.

    >>> import mlx.nn as nn, purestep as ps
    >>> apply, params, _ = ps.functional(nn.Sequential(nn.Linear(2, 4), nn.ReLU()))
    >>> loss_fn = lambda params, batch, rng: apply(params, batch["x"]).sum()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create(params, transform)
    >>> step = ps.train_step(loss_fn, transform, measure=[ps.metrics.activations("layers.1")])
    >>> metrics = step(state, {"x": mx.zeros((3, 2))})[1]
    >>> sorted(name for name in metrics if name.startswith("activations"))[:2]
    ['activations/layers.1/dead', 'activations/layers.1/gain']
    """
    caller = "activations"
    chosen = checked_patterns(caller, patterns)
    eps = checks.number(caller, "eps", eps, least=0.0)

    def record(out: mx.array, given: mx.array | None) -> Statistics:
        rows = _rows(out)
        found = {
            "rows": mx.array(float(rows.shape[0])),
            "norms": sums.total(mx.sqrt(sums.total(mx.square(rows), axis=1))),
            "sum": sums.total(rows),
            # For each unit, the rows in which it is above eps: they tell of sparsity and of dead units.
            "large": (~(mx.abs(rows) <= eps)).sum(axis=0),  # int32: exact
        }
        if given is not None:
            found["given"] = sums.total(mx.sqrt(sums.total(mx.square(_rows(given)), axis=1)))
        return found

    def measure(moment: Moment) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        for path in sorted(moment.observed, key=natural):
            seen = moment.observed[path]
            path = f"{path}/" if path else ""
            found[f"{path}norm"] = seen["norms"] / seen["rows"]
            if "given" in seen:
                found[f"{path}gain"] = mx.where(seen["norms"] == 0, 0.0, seen["norms"] / seen["given"])
            size = seen["rows"] * seen["large"].size
            found[f"{path}mean"] = seen["sum"] / size
            found[f"{path}sparsity"] = 1 - sums.total(seen["large"]) / size
            found[f"{path}dead"] = sums.mean(seen["large"] == 0)
        return found

    return Measurement(name, measure, every, Watch(caller, chosen, "outputs", record, _merged))


def checked_patterns(caller: str, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns as a tuple; refuse an empty list and what is no string."""
    if not isinstance(patterns, Iterable):
        raise TypeError(f"{caller}: patterns must be a string or a list of them, got {patterns!r}")
    chosen = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not chosen:
        raise checks.error(caller, "patterns must have at least one pattern, got none")
    for each in chosen:
        if not isinstance(each, str):
            raise TypeError(f"{caller}: a pattern must be a string, got {each!r}")
    return chosen


def _rows(x: mx.array) -> mx.array:
    """Return an array as float32 vectors along its last axis: [rows, units]."""
    x = x.astype(mx.float32)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _merged(first: Statistics, second: Statistics) -> Statistics:
    if first["large"].shape != second["large"].shape:
        raise checks.error(
            "activations",
            f"a layer must return the same number of units in each call, got {first['large'].size} and "
            f"{second['large'].size}",
        )
    return {key: first[key] + second[key] for key in first if key in second}
