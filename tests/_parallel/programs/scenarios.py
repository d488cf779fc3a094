"""Steps of several processes beside the same steps in one process; prints the differences as JSON."""

import hashlib
import json
import sys

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from purestep.transforms import accumulate, add_noise, averaged, clip_by_global_norm, matrices, skip_nonfinite

GROUP = mx.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
ROWS, STEPS = 24, 20  # rows for 2, 3 and 4 ranks

with ps.rng.scope(mx.random.key(0)):
    X, Y = mx.random.normal((ROWS, 5)), mx.random.normal((ROWS, 3))
    MASK = (mx.random.uniform(shape=(ROWS, 3)) < mx.linspace(0.1, 0.9, ROWS)[:, None]).astype(mx.float32)
    FEW = mx.concatenate([mx.zeros(ROWS // 2), mx.ones(ROWS // 2)])  # nothing counts on the first ranks
    PARAMS = {"b": mx.zeros(3), "w": mx.random.normal((5, 3))}
BATCH = {"x": X, "y": Y, "m": MASK, "f": FEW}


def rows_of(batch, rank, size=SIZE):
    count = ROWS // size
    return ps.tree.map(lambda leaf: leaf[rank * count : (rank + 1) * count], batch)


def away(params, batch):
    return batch["x"] @ params["w"] + params["b"] - batch["y"]


def masked(params, batch, rng):
    squares = mx.square(away(params, batch))
    return ps.Mean.of(squares, batch["m"]), {"few": ps.Mean.of(squares.sum(axis=-1), batch["f"])}


def plain(params, batch, rng):
    return mx.square(away(params, batch)).mean(), {"first": away(params, batch)[0, 0]}


def summed(params, batch, rng):
    squares = mx.square(away(params, batch))
    few = ps.Mean.of(squares.sum(axis=-1), batch["f"])
    return ps.Mean.of(squares, batch["m"]) + 0.3 * few - mx.square(params["w"]).sum() / 50 + 2.0, {"few": few}


with ps.rng.scope(mx.random.key(0)):
    LAYER = nn.Sequential(nn.Linear(5, 3))
APPLY, _, _ = ps.functional(LAYER)
LAYER_PARAMS = {"layers": [{"weight": PARAMS["w"].T, "bias": PARAMS["b"]}]}


def observed(params, batch, rng):
    return ps.Mean.of(mx.square(APPLY(params, batch["x"], rng=rng) - batch["y"]), batch["m"])


def dropped(params, batch, rng):
    kept = mx.random.bernoulli(0.5, batch["x"].shape, key=rng) & mx.random.bernoulli(0.9, batch["x"].shape)
    return masked(params, batch | {"x": batch["x"] * kept}, rng)


ADAMW = ps.optimizers.adamw(1e-2, weight_decay=0.1, mask=matrices)
ONE = {"w": True, "b": True}
CLIPPED_ALL = ps.chain(clip_by_global_norm(0.5), ps.optimizers.lion(1e-2))
CLIPPED = ps.chain(clip_by_global_norm(0.5), ADAMW)


def trained(step, state, batch):
    metrics = {}
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        mx.eval(state, metrics)
    return state, metrics


def difference(found, expected):
    """Return the largest difference of two trees, as a part of the largest number of each array."""
    worst = 0.0
    for (path, a), (_, b) in zip(sorted(ps.tree.items(found)), sorted(ps.tree.items(expected)), strict=True):
        if path == "rng" or not a.size:
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        worst = max(worst, (mx.abs(a - b).max() / mx.maximum(mx.abs(b).max(), 1e-3)).item())
    return worst


def digest(state):
    return hashlib.sha256(b"".join(bytes(leaf) for _, leaf in sorted(ps.tree.items(state)))).hexdigest()


def compare(loss_fn, transform, *, compiled=False, params=PARAMS, reference=None, cut=None, **options):
    wrap = ps.compiled if compiled else lambda step: step
    state = ps.TrainState.create(params, transform, seed=3)
    step = wrap(ps.data_parallel(loss_fn, transform, **options))
    found, metrics = trained(step, state, rows_of(BATCH, RANK))
    options.pop("reduce_dtype", None)
    options |= {} if cut is None else {"microbatches": cut}
    whole = wrap(ps.train_step(reference or loss_fn, transform, **options))
    expected, known = trained(whole, state, BATCH)
    ps.parallel.check(found)
    return {
        "state": difference(ps.unpacked(found), ps.unpacked(expected)),
        "metrics": difference(metrics, known),
        "names": sorted(metrics) == sorted(known),
        "digest": digest((found, [metrics[name] for name in sorted(metrics)])),
    }


def parted(loss_fn, transform, *, compiled=False, params=PARAMS, reference=None, **options):
    """Compare a step of `sharded` with one process, and the size of the optimizer state."""
    wrap = ps.compiled if compiled else lambda step: step
    step = ps.sharded(loss_fn, transform, **options)
    own = ps.TrainState.create(params, step.transform, seed=3)
    whole = ps.TrainState.create(params, transform, seed=3)
    sizes = [sum(x.nbytes for x in ps.tree.leaves(state.opt_state)) for state in (own, whole)]
    own, metrics = trained(wrap(step), own, rows_of(BATCH, RANK))
    expected, known = trained(wrap(ps.train_step(reference or loss_fn, transform, **options)), whole, BATCH)
    ps.parallel.check(own)
    found = ps.parallel.gathered(own)
    again = ps.parallel.divided(found, step)
    return {
        "state": difference(ps.unpacked(found), ps.unpacked(expected)),
        "metrics": difference(metrics, known),
        "names": sorted(metrics) == sorted(known),
        "digest": digest((found, [metrics[name] for name in sorted(metrics)])),
        "size": sizes[0] / sizes[1],
        "same": (digest(again) == digest(own) and ps.parallel.gathered(own, to=0) is None) or RANK == 0,
    }


def by_rank(loss_fn):
    """Return the loss of all ranks together, in one process, with the keys that they have."""

    def whole(params, batch, rng):
        parts = []
        for rank in range(SIZE):
            key = ps.rng.fold_in(rng, rank)
            with ps.rng.scope(ps.rng.fold_in(key, 0x6B65)):
                parts.append(loss_fn(params, rows_of(batch, rank), key))
        losses, metrics = zip(*parts, strict=True)
        return ps.Mean.merge(*losses), {"few": ps.Mean.merge(*(each["few"] for each in metrics))}

    return whole


def batch_norm():
    """Compare with gradients and statistics of each rank's rows, added up by hand."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm(4), nn.Linear(4, 3))
    with ps.rng.scope(mx.random.key(1)):
        model.layers[0].weight = mx.random.normal((4, 5))
        model.layers[2].weight = mx.random.normal((3, 4))
        model.layers[0].bias, model.layers[2].bias = mx.zeros(4), mx.zeros(3)
    apply, params, model_state = ps.functional(model)

    def loss_fn(params, model_state, batch, rng):
        out, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        return ps.Mean.of(mx.square(out - batch["y"]), batch["m"]), {}, model_state

    transform = ps.optimizers.sgd(0.1)
    step = ps.data_parallel(loss_fn, transform, stateful=True)
    state = found = ps.TrainState.create(params, transform, model_state=model_state)
    for _ in range(3):
        found, _ = step(found, rows_of(BATCH, RANK))

        def total(params, rank, old=state.model_state):
            loss, _, new = loss_fn(params, old, rows_of(BATCH, rank), mx.random.key(0))
            return loss.total, loss.weight, new

        gradients, weight, new_states = [], mx.array(0.0), []
        for rank in range(SIZE):
            (_, own, new), gradient = mx.value_and_grad(total)(state.params, rank)
            gradients.append(gradient)
            weight = weight + own
            new_states.append(new)
        params = ps.tree.map(
            lambda p, *gs, weight=weight: p - 0.1 * sum(gs[1:], gs[0]) / weight, state.params, *gradients
        )
        averaged_state = ps.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / SIZE, *new_states)
        state = state.replace(params=params, model_state=averaged_state)
    ps.parallel.check(found)
    return {
        "state": difference((found.params, found.model_state), (state.params, state.model_state)),
        "metrics": 0.0,
        "names": True,
        "digest": digest(found),
    }


def evaluated():
    state = ps.TrainState.create(PARAMS, ADAMW)
    step = ps.eval_step(summed)
    found = ps.evaluate(ps.compiled(ps.parallel.merged(step)), state, [rows_of(BATCH, RANK)] * 2)
    whole = ps.evaluate(step, state, [BATCH] * 2)
    return {
        "state": max(abs(found[name] / whole[name] - 1) for name in whole),
        "metrics": 0.0,
        "names": list(found) == list(whole),
        "digest": str(sorted(found.items())),
    }


def refusals():
    found = []
    for call in (
        lambda: ps.parallel.check({"a": mx.ones(2), "b": {"c": mx.array([1, RANK])}}),
        lambda: ps.parallel.check({"a": mx.ones(2), "b": mx.ones(2 + RANK)}),
        lambda: ps.parallel.check({"a": mx.ones(2)} | ({"b": mx.ones(2)} if RANK else {})),
        lambda: ps.parallel.check(dict(reversed(PARAMS.items())) if RANK else PARAMS),
        lambda: ps.TrainState.create(PARAMS, ps.sharded(masked, ps.optimizers.muon(0.1)).transform),
        lambda: ps.TrainState.create(
            PARAMS, ps.sharded(masked, ps.chain(CLIPPED, ps.optimizers.lars(0.1))).transform
        ),
        lambda: ps.data_parallel(masked, ADAMW)(
            ps.TrainState.create(PARAMS, ADAMW, seed=RANK), rows_of(BATCH, RANK)
        ),
        lambda: ps.compiled(ps.data_parallel(masked, ADAMW))(
            ps.TrainState.create({**PARAMS, "b": mx.full(3, float(RANK))}, ADAMW), rows_of(BATCH, RANK)
        ),
        lambda: ps.data_parallel(
            lambda params, batch, rng: ps.losses.ntxent(away(params, batch), away(params, batch)), ADAMW
        )(ps.TrainState.create(PARAMS, ADAMW), rows_of(BATCH, RANK)),
    ):
        try:
            call()
            found.append("")
        except ValueError as error:
            found.append(str(error))
    return found


SCENARIOS = {
    "ragged": lambda: compare(masked, CLIPPED),
    "compiled": lambda: compare(masked, CLIPPED, compiled=True),
    "microbatches": lambda: compare(masked, CLIPPED, microbatches=2),
    "scalar": lambda: compare(plain, CLIPPED, reference=by_rank_scalar),
    "sum of means": lambda: compare(summed, CLIPPED),
    "sum of means, cut": lambda: compare(summed, CLIPPED, microbatches=2, compiled=True),
    "accumulated": lambda: compare(masked, accumulate(CLIPPED, every=3)),
    "averaged": lambda: compare(masked, averaged(CLIPPED, decay=0.9)),
    "noise": lambda: compare(masked, ps.chain(add_noise(0.1, 0.5, 7), ADAMW)),
    "dropout": lambda: compare(dropped, CLIPPED, reference=by_rank(dropped)),
    "packed": lambda: compare(masked, CLIPPED, params=ps.packed(PARAMS), compiled=True),
    "measured": lambda: compare(
        observed,
        CLIPPED,
        params=LAYER_PARAMS,
        measure=[ps.metrics.grad_norms(), ps.metrics.noise_scale(), ps.metrics.activations("*")],
        microbatches=2,
        cut=2 * SIZE,
    ),
    "bfloat16": lambda: compare(masked, CLIPPED, reduce_dtype=mx.bfloat16),
    "half": lambda: compare(ps.compute_in(masked, mx.bfloat16), CLIPPED, params=ps.packed(PARAMS)),
    "sharded": lambda: parted(masked, CLIPPED, params=ps.packed(PARAMS)),
    "sharded, compiled": lambda: parted(masked, CLIPPED, params=ps.packed(PARAMS), compiled=True),
    "sharded tree": lambda: parted(masked, CLIPPED, microbatches=2),
    "sharded, one group": lambda: parted(summed, CLIPPED_ALL, params=ps.packed(PARAMS, ONE)),
    "sharded, averaged": lambda: parted(masked, averaged(accumulate(CLIPPED, every=3), decay=0.9)),
    "sharded, skipping": lambda: parted(masked, skip_nonfinite(ps.optimizers.prodigy(1.0))),
    "evaluated": evaluated,
    "batch norm": batch_norm,
    "refusals": refusals,
}


def by_rank_scalar(params, batch, rng):
    parts = [plain(params, rows_of(batch, rank), rng) for rank in range(SIZE)]
    losses, metrics = zip(*parts, strict=True)
    return sum(losses) / SIZE, {"first": sum(each["first"] for each in metrics) / SIZE}


if __name__ == "__main__":
    chosen = sys.argv[1:] or SCENARIOS
    print(json.dumps({name: SCENARIOS[name]() for name in chosen}))
