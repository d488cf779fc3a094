"""Steps of `sharded` beside those of `data_parallel` for every transform of the catalogue; prints JSON.

For each name: whether `sharded` refuses the transform, and otherwise the largest difference of two elements.
"""

import json
import sys

import mlx.core as mx
from scenarios import difference, digest

import purestep as ps
from tests._transforms.core.test_packed import PARAMS, fine
from tests.catalogue import CATALOGUE

RANK = mx.distributed.init().rank()
STEPS = 3
ROWS = mx.random.normal((2, 3), key=mx.random.key(0))[RANK]  # other rows, and other weights, on each rank


def loss_fn(params, batch, rng):
    rows = [
        mx.square((1 + index) * leaf.astype(mx.float32) - batch["x"].reshape(-1, *[1] * leaf.ndim))
        for index, leaf in enumerate(ps.tree.leaves(params))
    ]
    return ps.Mean.of(sum(row.reshape(row.shape[0], -1).sum(axis=1) for row in rows), mx.arange(3) + RANK)


def trained(step, state):
    for _ in range(STEPS):
        state, metrics = step(state, {"x": ROWS})
        mx.eval(state, metrics)
    return state, metrics


def law(make):
    params = ps.packed(PARAMS, fine)
    step = ps.sharded(loss_fn, make())
    try:
        found, metrics = trained(step, ps.TrainState.create(params, step.transform, seed=1))
    except ValueError as error:
        return {"refused": str(error)}
    whole = make()
    expected, known = trained(ps.data_parallel(loss_fn, whole), ps.TrainState.create(params, whole, seed=1))
    ps.parallel.check(found)
    found, expected = ps.unpacked(ps.parallel.gathered(found)), ps.unpacked(expected)
    return {
        "difference": difference((found, metrics), (expected, known)),
        "equal": digest((found.params, found.opt_state)) == digest((expected.params, expected.opt_state)),
    }


print(json.dumps({name: law(CATALOGUE[name]) for name in sys.argv[1:] or CATALOGUE}))
