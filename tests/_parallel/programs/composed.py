"""Steps that are composed, masked or fed unusually, beside the same ones in one process; prints JSON."""

import json
import sys

import mlx.core as mx
import mlx.nn as nn
from scenarios import (
    BATCH,
    CLIPPED,
    PARAMS,
    RANK,
    away,
    by_rank,
    compare,
    difference,
    digest,
    masked,
    parted,
    rows_of,
)

import purestep as ps
from purestep import optimizers
from purestep.transforms import accumulate, averaged, partition, skip_nonfinite

OWN = rows_of(BATCH, RANK)
TINY = {"s": mx.array(0.5), "v": mx.array([2.0])}
EMPTY = {**PARAMS, "e": mx.zeros((0, 3)), "n": None, "d": {}}
RATE = ps.schedules.warmup_cosine_decay(0.0, 1e-2, 5, 20)
GROUPED = partition(
    {"a": optimizers.adamw(RATE, weight_decay=0.1), "b": optimizers.sgd(1e-2, momentum=0.9)},
    [("w", "a"), ("*", "b")],
)


def few(params, batch, rng):
    """A loss without a valid row on the first ranks."""
    squares = mx.square(away(params, batch))
    return ps.Mean.of(squares.sum(axis=-1), batch["f"]), {
        "all": ps.Mean.of(squares, batch["m"]),
        "sum": ps.Mean.of(squares) + ps.Mean.of(squares, batch["m"]),
        "accuracy": ps.Mean((squares < 1).sum(), mx.array(squares.size)),
    }


def none(params, batch, rng):
    return ps.Mean.of(mx.square(away(params, batch)).sum(axis=-1), 0 * batch["f"])


def nan_on_one(params, batch, rng):
    return masked(params, batch, rng)[0] * mx.where(batch["f"][-1] > 0, mx.nan, 1.0)


def tiny(params, batch, rng):
    return ps.Mean.of(mx.square(batch["x"] * params["s"] + params["v"]), batch["x"] > 0)


with ps.rng.scope(mx.random.key(5)):
    MODEL = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 3))
    APPLY, DROPPED, _ = ps.functional(MODEL)
    mx.eval(DROPPED)


def dropped(params, batch, rng):
    squares = mx.square(APPLY(params, batch["x"], rng=rng) - batch["y"])
    return ps.Mean.of(squares, batch["m"]), {"few": ps.Mean.of(squares.sum(axis=-1), batch["f"])}


def counted(params, model_state, batch, rng):
    mean = 0.9 * model_state["mean"] + 0.1 * batch["x"].mean(axis=0)
    return masked(params, batch, rng)[0], {}, {"n": model_state["n"] + 1, "mean": mean}


def result(found, metrics, expected, known):
    ps.parallel.check(found)
    return {
        "state": difference(found, expected),
        "metrics": difference(metrics, known),
        "names": sorted(metrics) == sorted(known),
        "digest": digest((found, [metrics[name] for name in sorted(metrics)])),
    }


def scanned(outer):
    step = ps.data_parallel(masked, CLIPPED)
    step = ps.compiled(ps.scan(step, 2)) if outer else ps.scan(ps.compiled(step), 2)
    found = expected = ps.TrainState.create(PARAMS, CLIPPED, seed=3)
    whole, metrics, known = ps.train_step(masked, CLIPPED), {}, {}
    for _ in range(5):
        found, metrics = step(found, ps.tree.map(lambda x: mx.stack([x, x]), OWN))
        for _ in range(2):
            expected, known = whole(expected, BATCH)
    return result(found, {name: value[-1] for name, value in metrics.items()}, expected, known)


def populated():
    def make(seed):
        return ps.TrainState.create({**PARAMS, "b": mx.full(3, float(seed))}, CLIPPED, seed=seed)

    found = expected = ps.populations.create(make, range(3), learning_rate=[1e-2, 1e-3, 2e-2])
    step = ps.compiled(ps.population(ps.data_parallel(masked, CLIPPED)))
    whole, metrics, known = ps.compiled(ps.population(ps.train_step(masked, CLIPPED))), {}, {}
    for _ in range(5):
        found, metrics = step(found, OWN)
        expected, known = whole(expected, BATCH)
    return result(found, metrics, expected, known)


def stateful():
    start = {"n": mx.array(0), "mean": mx.zeros(5)}
    found = expected = ps.TrainState.create(PARAMS, CLIPPED, model_state=start)
    step = ps.compiled(ps.data_parallel(counted, CLIPPED, stateful=True))
    whole, metrics, known = ps.train_step(counted, CLIPPED, stateful=True), {}, {}
    for _ in range(5):
        found, metrics = step(found, OWN)
        expected, known = whole(expected, BATCH)
    return result(found, metrics, expected, known)


def uneven(wrap):
    """Train and evaluate, while the ranks read different results at different times."""
    found = expected = ps.TrainState.create(PARAMS, CLIPPED)
    step = wrap(ps.data_parallel(masked, CLIPPED, measure=[ps.metrics.grad_norms()]))
    evaluation = wrap(ps.parallel.merged(ps.eval_step(masked)))
    whole, metrics, measured, known = ps.train_step(masked, CLIPPED), {}, {}, {}
    for index in range(6):
        found, metrics = step(found, OWN)
        expected, _ = whole(expected, BATCH)
        if RANK == 0:
            mx.eval(metrics)
        elif index % 2:
            mx.eval(found.params)
        measured = ps.evaluate(evaluation, found, [OWN])
    known = ps.evaluate(ps.eval_step(masked), expected, [BATCH])
    arrays = [{name: mx.array(value) for name, value in each.items()} for each in (measured, known)]
    return result(found, arrays[0], expected, arrays[1])


def uneven_check():
    """Check a state whose metrics only one rank has read."""
    found = expected = ps.TrainState.create(PARAMS, CLIPPED)
    step = ps.data_parallel(masked, CLIPPED, measure=[ps.metrics.grad_norms()])
    whole = ps.train_step(masked, CLIPPED)
    for _ in range(3):
        found, metrics = step(found, OWN)
        expected, _ = whole(expected, BATCH)
        if RANK == 0:
            mx.eval(found, metrics)
    return result(found, {}, expected, {})


SCENARIOS = {
    "few": lambda: compare(few, CLIPPED, compiled=True),
    "few, cut": lambda: compare(few, CLIPPED, microbatches=2),
    "few, sharded": lambda: parted(few, CLIPPED, microbatches=2, compiled=True),
    "none": lambda: compare(none, CLIPPED, compiled=True),
    "nan on one rank": lambda: compare(nan_on_one, skip_nonfinite(CLIPPED)),
    "nan on one rank, sharded": lambda: parted(nan_on_one, skip_nonfinite(CLIPPED)),
    "muon": lambda: compare(masked, optimizers.muon(1e-2)),
    "muon, packed": lambda: compare(masked, optimizers.muon(1e-2), params=ps.packed(PARAMS), compiled=True),
    "grouped": lambda: compare(masked, GROUPED, params=ps.packed(PARAMS), compiled=True),
    "grouped, sharded": lambda: parted(masked, GROUPED),
    "fewer elements than ranks": lambda: compare(tiny, CLIPPED, params=TINY),
    "fewer elements than ranks, sharded": lambda: parted(tiny, CLIPPED, params=TINY),
    "empty array": lambda: compare(masked, CLIPPED, params=EMPTY),
    "empty array, sharded": lambda: parted(masked, CLIPPED, params=EMPTY),
    "averaged": lambda: compare(
        masked, averaged(accumulate(CLIPPED, every=3), decay=0.9), params=ps.packed(PARAMS)
    ),
    "dropout": lambda: compare(dropped, CLIPPED, params=DROPPED, reference=by_rank(dropped), compiled=True),
    "scanned": lambda: scanned(False),
    "scanned, compiled": lambda: scanned(True),
    "populated": populated,
    "stateful": stateful,
    "measured, sharded": lambda: parted(
        masked, CLIPPED, params=ps.packed(PARAMS), measure=[ps.metrics.grad_norms()]
    ),
    "uneven, checked": uneven_check,
    "uneven": lambda: uneven(lambda step: step),
    "uneven, compiled": lambda: uneven(ps.compiled),
}

if __name__ == "__main__":
    print(json.dumps({name: SCENARIOS[name]() for name in sys.argv[1:] or SCENARIOS}))
