"""A fault in how one rank builds or calls its step; prints the error that this rank receives, as JSON."""

import json
import sys

import mlx.core as mx
from scenarios import ADAMW, BATCH, PARAMS, RANK, masked, plain, rows_of, summed

import purestep as ps

ILL = RANK == 1
ROWS = rows_of(BATCH, RANK)
STATE = ps.TrainState.create(PARAMS, ADAMW)
NORMS = ps.metrics.grad_norms()


def renamed(params, batch, rng):
    loss, metrics = masked(params, batch, rng)
    return loss, {"other": metrics["few"]}


def more(params, batch, rng):
    loss, metrics = masked(params, batch, rng)
    return loss, {**metrics, "more": loss}


def three(params, batch, rng):
    loss, metrics = summed(params, batch, rng)
    return loss + ps.Mean.of(mx.square(params["b"])), metrics


def half(params, batch, rng):
    return masked(ps.tree.map(lambda p: p.astype(mx.float16), params), batch, rng)


def first(step, state=STATE):
    step(state, ROWS)


def evaluated(loss_fn):
    ps.evaluate(ps.parallel.merged(ps.eval_step(loss_fn)), STATE, [ROWS])


def differentiated(builder):
    step = builder(masked, ADAMW)
    state = ps.TrainState.create(PARAMS, step.transform)

    def loss(params):
        new, metrics = step(state.replace(params=params), ROWS)
        return metrics["loss"] + new.params["w"].sum()

    mx.eval(mx.grad(loss)(PARAMS))


HALVES = ps.tree.map(lambda p: p.astype(mx.bfloat16), PARAMS)
FAULTS = {
    "another metric": lambda: first(ps.data_parallel(renamed if ILL else masked, ADAMW)),
    "one more metric": lambda: first(ps.compiled(ps.data_parallel(more if ILL else masked, ADAMW))),
    "no metric": lambda: first(ps.data_parallel(masked if ILL else plain, ADAMW)),
    "exported": lambda: ps.export(ps.data_parallel(masked, ADAMW), STATE, ROWS, f"exported{RANK}"),
    "a sum of means": lambda: first(ps.data_parallel(summed if ILL else masked, ADAMW)),
    "more means": lambda: first(ps.sharded(three if ILL else summed, ADAMW), sharded_state(summed)),
    "microbatches": lambda: first(ps.data_parallel(masked, ADAMW, microbatches=1 + ILL)),
    "reduce_dtype": lambda: first(
        ps.data_parallel(masked, ADAMW, reduce_dtype=mx.bfloat16 if ILL else mx.float32)
    ),
    "measure": lambda: first(ps.data_parallel(masked, ADAMW, measure=[NORMS] if ILL else [])),
    "sharded": lambda: first(
        ps.sharded(masked, ADAMW) if ILL else ps.data_parallel(masked, ADAMW),
        sharded_state(masked) if ILL else STATE,
    ),
    "step number": lambda: first(
        ps.data_parallel(masked, ADAMW), STATE.replace(step=mx.array(int(ILL), mx.int32))
    ),
    "dtype": lambda: first(
        ps.data_parallel(masked, ADAMW), ps.TrainState.create(HALVES if ILL else PARAMS, ADAMW)
    ),
    "scanned": lambda: ps.compiled(ps.scan(ps.data_parallel(masked, ADAMW), 2))(
        STATE.replace(step=mx.array(int(ILL), mx.int32)), ps.tree.map(lambda x: mx.stack([x, x]), ROWS)
    ),
    "whole state": lambda: first(ps.sharded(masked, ADAMW)),
    "state in parts": lambda: first(ps.data_parallel(masked, ADAMW), sharded_state(masked)),
    "differentiated": lambda: differentiated(ps.data_parallel),
    "differentiated, sharded": lambda: differentiated(ps.sharded),
    "merged": lambda: evaluated(renamed if ILL else masked),
    "merged, more": lambda: evaluated(more if ILL else masked),
}


def sharded_state(loss_fn):
    return ps.TrainState.create(PARAMS, ps.sharded(loss_fn, ADAMW).transform)


def error_of(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


print(json.dumps({name: error_of(FAULTS[name]) for name in sys.argv[1:] or FAULTS}))
