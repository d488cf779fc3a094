"""Statistics of the outputs of layers: norms, means, sparsity and dead units."""

import math
from collections.abc import Iterable, Sequence

import mlx.core as mx

from purestep._core import checks, sums
from purestep._layers.observing import Statistics, Watch, alike, stacked
from purestep._measures import output_kernel
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
        return statistics(out, given, eps)

    def measure(moment: Moment) -> dict[str, mx.array]:
        numbers: dict[str, dict[str, mx.array]] = {}
        for paths, seen in moment.observed.items():
            rows, norms, total, *given = (seen["totals"][:, i] for i in range(seen["totals"].shape[1]))
            size = rows * seen["large"].shape[1]
            found = {"norm": norms / rows}
            if given:
                found["gain"] = mx.where(norms == 0, 0.0, norms / given[0])
            found["mean"] = total / size
            found["sparsity"] = 1 - sums.total(seen["large"], axis=1) / size
            found["dead"] = sums.mean(seen["large"] == 0, axis=1)
            for index, path in enumerate(paths):
                numbers[path] = {key: values[index : index + 1].reshape(()) for key, values in found.items()}
        return by_path(numbers)

    return Measurement(name, measure, every, Watch(caller, chosen, "outputs", record, _finished, _merged))


def by_path(numbers: dict[str, dict[str, mx.array]]) -> dict[str, mx.array]:
    """Return numbers of layers as `path/key`, in natural order."""
    return {
        f"{path}/{key}" if path else key: value
        for path in sorted(numbers, key=natural)
        for key, value in numbers[path].items()
    }


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


def statistics(out: mx.array, given: mx.array | None, eps: float) -> Statistics:
    """Return sums over parts of the rows of an output, where a row is a vector along the last axis.

    Args:
        out: the output.
        given: the input; `None` if it is not measured.
        eps: an element is large if its absolute value is above `eps`, or if it is NaN.

    Returns:
        `totals`, float32 [parts, 3 or 4]: the number of rows, the sum of their norms, the sum of all
        elements and, with an input, the sum of the norms of its rows. `large`, [parts, units]: the number of
        large elements of each unit.
    """
    if output_kernel.serves(*(x for x in (out, given) if x is not None)):
        return output_kernel.statistics(out, given, eps)
    rows = _rows(out)
    totals = [mx.array(float(rows.shape[0])), _norms(rows), sums.total(rows)]
    if given is not None:
        totals.append(_norms(_rows(given)))
    large = (~(mx.abs(rows) <= eps)).sum(axis=0, keepdims=True)  # int32: exact
    return {"totals": mx.stack(totals)[None], "large": large}


def _norms(rows: mx.array) -> mx.array:
    return sums.total(mx.sqrt(sums.total(mx.square(rows), axis=1)))


def _rows(x: mx.array) -> mx.array:
    """Return an array as float32 vectors along its last axis: [rows, units]."""
    x = x.astype(mx.float32)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _finished(recorded: list[Statistics]) -> list[tuple[list[int], Statistics]]:
    found = []
    for group in alike(recorded):
        parts = {name: stacked([recorded[index][name] for index in group]) for name in ("totals", "large")}
        found.append((group, {name: _over_parts(x) for name, x in parts.items()}))
    return found


def _over_parts(x: mx.array) -> mx.array:
    return sums.total(x, axis=1) if x.shape[1] > 1 else x.squeeze(1).astype(mx.float32)


def _merged(first: Statistics, second: Statistics) -> Statistics:
    if first["large"].shape != second["large"].shape:
        raise checks.error(
            "activations",
            "a layer must return the same number of units in each call, got "
            f"{first['large'].shape[1]} and {second['large'].shape[1]}",
        )
    # Without the norms of the inputs, if one call had none.
    columns = min(first["totals"].shape[1], second["totals"].shape[1])
    totals = first["totals"][:, :columns] + second["totals"][:, :columns]
    return {"totals": totals, "large": first["large"] + second["large"]}
