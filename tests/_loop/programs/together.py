"""Runs of `fit` in several processes. Each scenario prints a row of JSON on each rank."""

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.ranks import shared

shared.VISIBLE = 0.5

DIRECTORY, *NAMES = sys.argv[1:]
GROUP = mx.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
KEYS = mx.random.split(mx.random.key(0), 3)
X = mx.random.normal((96, 3), key=KEYS[0])
Y = X @ mx.array([1.0, -2.0, 0.5]) + 0.1 * mx.random.normal((96,), key=KEYS[1])
PADDED = mx.random.uniform(shape=(96,), key=KEYS[2]) < 0.8
DATA = {"x": X, "y": Y, "real": PADDED}
ILL = SIZE - 1


def loss_fn(params, batch, rng):
    return ps.Mean.of(mx.square(batch["x"] @ params["w"] - batch["y"]), batch["real"])


TRANSFORM = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adam(0.05))
STEP = ps.compiled(ps.data_parallel(loss_fn, TRANSFORM))


def start():
    return ps.TrainState.create({"w": mx.zeros(3)}, TRANSFORM, seed=0)


def source(**options):
    return ps.data.for_rank(ps.data.Batches(DATA, 16, seed=1), **options)


def listed(rows=12):
    return [{name: array[at : at + rows] for name, array in DATA.items()} for at in range(0, 96, rows)]


def evaluation(every=5):
    measure = ps.compiled(ps.parallel.merged(ps.eval_step(loss_fn)))
    return ps.Evaluation(measure, ps.data.for_rank(listed()), every=every)


def shown(result):
    params = bytes(memoryview(result.state.params["w"]))
    return {
        "reason": result.reason,
        "steps": result.steps,
        "w": result.state.params["w"].tolist(),
        "digest": hashlib.sha256(params).hexdigest(),
        "history": [{**row} for row in result.history],
        "best": None if result.best is None else list(result.best),
    }


class Seen(ps.callbacks.Callback):
    """Counts the calls of all hooks."""

    def __init__(self, all_ranks=False):
        self.all_ranks, self.calls, self.samples = all_ranks, [], 0

    def on_train_begin(self, run):
        self.calls.append(f"begin {run.rank} of {run.ranks}")

    def on_step_end(self, progress):
        self.calls.append(progress.step)
        self.samples = progress.samples

    def on_train_end(self, result):
        self.calls.append("end")


def whole():
    seen, both = Seen(), Seen(all_ranks=True)
    path = Path(DIRECTORY) / f"whole-{SIZE}.jsonl"
    callbacks = [seen, both, ps.callbacks.jsonl(path)]
    result = ps.fit(STEP, start(), source(), steps=20, evaluate=evaluation(), callbacks=callbacks)
    calls = {"seen": seen.calls, "both": both.calls, "samples": both.samples}
    return shown(result) | calls | {"rows": len(path.read_text().splitlines()) if RANK == 0 else None}


def iterable():
    """The rows of a batch do not divide by 4, and the last batch is shorter."""
    return shown(ps.fit(STEP, start(), ps.data.for_rank(listed(10), uneven=True), epochs=2))


def lazy():
    """A generator of arrays that are not evaluated: the thread that reads ahead cannot do it."""
    return shown(ps.fit(STEP, start(), ps.data.for_rank(batch for batch in listed()), steps=20))


def mixed():
    mixture = ps.data.Mixture([ps.data.Batches(DATA, 8, seed=n) for n in range(2)], [3, 1], block=4)
    return shown(ps.fit(STEP, start(), ps.data.for_rank(mixture), steps=8))


def stopping():
    early = ps.callbacks.early_stopping("eval_loss", patience=1, min_delta=0.5)
    return shown(ps.fit(STEP, start(), source(), steps=40, evaluate=evaluation(2), callbacks=[early]))


class StopOnOneRank(ps.callbacks.Callback):
    all_ranks = True

    def on_step_end(self, progress):
        return ps.callbacks.Stop("enough") if progress.step == 7 and RANK == ILL else None


def stop():
    return shown(
        ps.fit(STEP, start(), source(), steps=40, evaluate=evaluation(), callbacks=[StopOnOneRank()])
    )


class Terminated(ps.callbacks.Callback):
    all_ranks = True

    def on_step_end(self, progress):
        if progress.step == 6 and RANK == ILL:
            os.kill(os.getpid(), signal.SIGTERM)


def kept(name, steps, callbacks=(), data=None, save_every=None):
    """Train with checkpoints in a directory of this name."""
    with ps.checkpoint.Checkpointer(Path(DIRECTORY) / name, metric="eval_loss") as checkpointer:
        return ps.fit(
            STEP, start(), source() if data is None else data, steps=steps, evaluate=evaluation(7),
            checkpointer=checkpointer, save_every=save_every, callbacks=callbacks,
        )  # fmt: skip


def term():
    first = kept("term", 20, [Terminated()])
    second = kept("term", 20)
    return {"first": shown(first), "second": shown(second)}


def short():
    """The source of one rank has fewer batches."""
    batches = [source().at(step) for step in range(4 if RANK == ILL else 6)]
    return shown(ps.fit(STEP, start(), iter(batches), steps=8, evaluate=evaluation(3)))


class Failing:
    whole = "no source: a user's own attribute"

    def at(self, step):
        if step == 5 and RANK == ILL:
            raise ValueError("a broken file")
        return source().at(step)


class FailsAt(ps.callbacks.Callback):
    def on_step_end(self, progress):
        if progress.step == 3:
            raise OSError("no space")


class FailsAtEnd(ps.callbacks.Callback):
    def on_train_end(self, result):
        raise OSError("no space")


class Misshaped(Failing):
    def at(self, step):
        batch = source().at(step)
        return {**batch, "x": batch["x"][:, :2]} if step == 5 and RANK == ILL else batch


def error_of(function):
    try:
        function()
    except Exception as error:
        result = getattr(error, "result", None)
        notes = " ".join(getattr(error, "__notes__", []))
        return [type(error).__name__, str(error), result and result.steps, notes]
    return None


def unmerged():
    alone = ps.Evaluation(ps.eval_step(loss_fn), ps.data.for_rank(listed()), every=2)
    return ps.fit(STEP, start(), source(), steps=4, evaluate=alone)


def fewer():
    batches = ps.data.for_rank(listed())
    batches = list(batches)[: 2 if RANK == ILL else 3]
    measure = ps.parallel.merged(ps.eval_step(loss_fn))
    return ps.fit(STEP, start(), source(), steps=4, evaluate=ps.Evaluation(measure, batches, every=2))


def elsewhere():
    """Each rank sees a directory of its own; that of rank 0 has checkpoints."""
    path = Path(DIRECTORY) / ("term" if RANK == 0 else "other")
    with ps.checkpoint.Checkpointer(path) as checkpointer:
        ps.fit(STEP, start(), source(), steps=8, checkpointer=checkpointer)


def unshared():
    """Each rank sees an empty directory of its own."""
    with ps.checkpoint.Checkpointer(Path(DIRECTORY) / f"unshared {RANK}") as checkpointer:
        ps.fit(STEP, start(), source(), steps=2, checkpointer=checkpointer)


def alone():
    """Each rank trains by itself, with a checkpointer of all of them."""
    step = ps.train_step(loss_fn, TRANSFORM)
    with ps.checkpoint.Checkpointer(Path(DIRECTORY) / "alone") as checkpointer:
        ps.fit(step, start(), source(), steps=2, checkpointer=checkpointer)


def broken():
    """A NaN ends the run on all ranks, and is not saved."""
    bad = {**DATA, "y": mx.where(mx.arange(96) == 40, mx.nan, Y)}
    data = ps.data.for_rank(ps.data.Batches(bad, 16, shuffle=False))
    result = kept("broken", 20, data=data, save_every=1)
    records = ps.checkpoint.Checkpointer(Path(DIRECTORY) / "broken").list()
    return {**shown(result), "saved": [record.step for record in records]}


def errors():
    return {
        "source": error_of(lambda: kept("source", 8, data=Failing())),
        "end": error_of(
            lambda: ps.fit(STEP, start(), source(), steps=2, callbacks=[FailsAtEnd()], evaluate=evaluation(1))
        ),
        "callback": error_of(lambda: kept("callback", 8, [FailsAt()])),
        "shape": error_of(lambda: kept("shape", 8, data=Misshaped())),
        "steps": error_of(lambda: ps.fit(STEP, start(), source(), steps=2 + 2 * RANK)),
        "state": error_of(lambda: ps.fit(STEP, start().replace(step=mx.array(RANK)), source(), steps=4)),
        "unmerged": error_of(unmerged),
        "elsewhere": error_of(elsewhere),
        "unshared": error_of(unshared),
        "alone": error_of(alone),
        "bundles": error_of(
            lambda: ps.fit(
                STEP, start(), source(), steps=2, callbacks=[ps.callbacks.nonfinite(DIRECTORY + "/b")]
            )
        ),
        "afterwards": shown(ps.fit(STEP, start(), source(), steps=2))["steps"],
        "warned": warned(),
        "fewer": error_of(fewer),
        "parted": error_of(lambda: ps.fit(STEP, start(), source(), steps=2)),
    }


def warned():
    """Each rank trains by itself, by mistake, on its own rows."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ps.fit(ps.train_step(loss_fn, TRANSFORM), start(), source(), steps=1)
    return [type(each.message).__name__ for each in found]


def sharded():
    """The optimizer state in parts; the run ends within a window of `accumulate`."""
    transform = ps.transforms.accumulate(TRANSFORM, every=3)
    step = ps.sharded(loss_fn, transform)
    state = ps.TrainState.create(ps.packed({"w": mx.zeros(3)}), step.transform, seed=0)
    result = ps.fit(ps.compiled(step), state, source(), steps=20, evaluate=evaluation(10))
    state = result.state
    return shown(result._replace(state=state.replace(params=ps.unpacked(state.params))))


def resumed(steps):
    """Go on from the checkpoint of a run with any number of ranks."""
    return [shown(kept("any", steps)), shown(iterated(steps)), parted(steps)]


def parted(steps):
    """The same with a sharded state, whose parts each rank saves."""
    transform = ps.transforms.accumulate(TRANSFORM, every=3)
    step = ps.sharded(loss_fn, transform)
    state = ps.TrainState.create(ps.packed({"w": mx.zeros(3)}), step.transform, seed=0)
    with ps.checkpoint.Checkpointer(Path(DIRECTORY) / "parted") as checkpointer:
        result = ps.fit(
            ps.compiled(step),
            state,
            source(),
            steps=13,
            checkpointer=checkpointer,
            callbacks=[ends(steps)],
        )
    state = result.state
    return shown(result._replace(state=state.replace(params=ps.unpacked(state.params))))


def ends(steps):
    """End the run by a request, so that its window of `accumulate` stays open."""
    return lambda progress: ps.callbacks.Stop("enough") if progress.step == steps else None


def iterated(steps):
    with ps.checkpoint.Checkpointer(Path(DIRECTORY) / "iterated") as checkpointer:
        data = ps.data.for_rank(listed(16))
        return ps.fit(STEP, start(), data, steps=steps, checkpointer=checkpointer)


SCENARIOS = {
    "whole": whole,
    "iterable": iterable,
    "lazy": lazy,
    "mixed": mixed,
    "sharded": sharded,
    "stopping": stopping,
    "stop": stop,
    "term": term,
    "short": short,
    "errors": errors,
    "broken": broken,
}

if __name__ == "__main__":
    for name in NAMES:
        made = resumed(int(name)) if name.isdigit() else SCENARIOS[name]()
        print(json.dumps({"name": name, "made": made}), flush=True)
