"""Saves of three ranks in which one goes wrong; prints what each attempt raised, as JSON."""

import errno
import io
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import storing
from storing import RANK

import purestep as ps
from purestep._checkpoint.ranks import files, receipts, shared, together
from purestep._checkpoint.run import newest, store
from purestep.checkpoint import (
    Checkpointer,
    save_any,
    save_every_seconds,
    save_every_steps,
    save_on_best,
    save_on_signal,
)
from purestep.transforms import clip_by_global_norm

ROOT = Path(sys.argv[1])
STEP = ps.sharded(storing.loss_fn, storing.TRANSFORM)
STATE = storing.made(STEP, ps.packed(storing.PARAMS))
WHOLE = ps.TrainState.create(storing.PARAMS, storing.TRANSFORM)
WRITE = files._write


def failing(rank, error):
    """Let a rank fail when it writes."""

    def write(path, entries, buffers):
        if rank == RANK:
            raise error
        return WRITE(path, entries, buffers)

    files._write = write


def raised(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def steps(root):
    return sorted(entry.name for entry in root.iterdir() if entry.name != ".lock")


def arguments():
    """Errors of arguments on one rank are raised on all."""
    with Checkpointer(ROOT / "a") as checkpointer:
        yield raised(lambda: checkpointer.save(STATE, metadata={"x": object()} if RANK == 1 else {}))
        yield raised(lambda: checkpointer.save(STATE, step=RANK))
        yield raised(lambda: checkpointer.save(WHOLE if RANK == 2 else STATE, step=1))
        yield raised(lambda: checkpointer.save({"w": mx.ones(3 + RANK // 2)}, step=1))
        yield raised(lambda: checkpointer.save({"w": STATE.opt_state[1:], 1 if RANK else 2: {}}, step=1))
    held = store.claim("test", ROOT / "locked") if RANK == 0 else None
    with Checkpointer(ROOT / "locked") as checkpointer:
        yield raised(lambda: checkpointer.save(STATE))
    del held
    yield steps(ROOT / "a")


def disks():
    """A rank whose disk is full: no checkpoint, and the next save works."""
    root = ROOT / "d"
    with Checkpointer(root) as checkpointer:
        checkpointer.save(STATE, step=1)
        failing(2, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "part"))
        checkpointer.save(STATE, step=2)
        yield raised(checkpointer.wait)
        failing(1, ValueError("x" * 600))
        checkpointer.save(STATE, step=3)
        failing(None, None)
        yield raised(lambda: checkpointer.save(STATE, step=4))  # which is saved
        checkpointer.wait()
        yield steps(root)
        failing(0, OSError(errno.EIO, "broken"))
        checkpointer.save(STATE, step=5)
        yield raised(checkpointer.wait)
        failing(None, None)
        yield steps(root)
        yield [record.step for record in checkpointer.list()] if RANK == 1 else [1, 4]  # on one rank alone
        checkpointer.delete(1)
        yield steps(root)
        yield raised(lambda: checkpointer.delete(1))
    with Checkpointer(root, max_pending=3) as checkpointer:
        failing(2, OSError(errno.ENOSPC, "full"))
        checkpointer.save(STATE, step=4)
        failing(None, None)
        errors = [raised(lambda number=number: checkpointer.save(STATE, step=number)) for number in (5, 5, 5)]
        yield len([*filter(None, [*errors, raised(checkpointer.wait)])])
    with Checkpointer(root, asynchronous=False, keep=lambda records: set()) as checkpointer:
        checkpointer.save(WHOLE, step=6)
        yield steps(root)


def directories():
    """Directories that ranks do not share."""
    shared.VISIBLE = 0.2
    own = ROOT / f"own-{RANK}"
    with Checkpointer(own) as checkpointer:
        yield raised(lambda: checkpointer.save(STATE, step=1)).replace(str(ROOT), "")
        yield raised(lambda: checkpointer.save(WHOLE, step=1)).replace(str(ROOT), "")
        if RANK == 0:
            shutil.copytree(ROOT / "d" / "step_00000006", own / "step_00000006")
        yield raised(lambda: checkpointer.restore(like=WHOLE)).replace(str(ROOT), "")
        yield raised(lambda: checkpointer.restore(6, like=WHOLE)).replace(str(ROOT), "")
    with Checkpointer(ROOT / "nothing") as checkpointer:
        yield raised(lambda: checkpointer.restore(like=STATE)).replace(str(ROOT), "")
    with Checkpointer(ROOT / "d") as checkpointer:
        yield raised(lambda: checkpointer.restore(1, like=STATE)).replace(str(ROOT), "")


def damage():
    """One rank reads a damaged part: all restore the checkpoint before."""
    root = ROOT / "damage"
    with Checkpointer(root) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.save(STATE, step=2)
        checkpointer.wait()
        part = root / "step_00000002" / "state-00002-of-00003.safetensors"
        if RANK == 0:
            data = bytearray(part.read_bytes())
            data[-1] ^= 1
            part.write_bytes(data)
        together.Together(mx.distributed.init()).exchange(None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state, record = checkpointer.restore(like=STATE)
        yield [record.step, part.name in str(caught[0].message), len(caught)]
        yield ps.tree.matches(lambda a, b: mx.array_equal(a, b).item(), state, STATE)
        yield raised(lambda: checkpointer.restore(2, like=STATE)).split(":")[0]
        yield raised(lambda: checkpointer.restore(2, like={"a": mx.ones(RANK)})).split(":")[0]
        yield raised(lambda: ps.checkpoint.load(ROOT / "no", like=STATE)).split(":")[0]


def policies():
    """Rank 0 decides, except by the step; a signal to any rank counts."""
    exchanged = []
    exchange = together.Together.exchange

    def counted(self, value):
        exchanged.append(value)
        return exchange(self, value)

    together.Together.exchange = counted
    due = save_any(save_every_steps(2), save_every_steps(5))
    with Checkpointer(ROOT / "p", save_when=due) as checkpointer:
        yield [checkpointer.save_if_due(STATE, step=step) for step in (1, 2)]
        exchanged.clear()
        yield [checkpointer.save_if_due(STATE, step=3), len(exchanged)]
    due = save_any(save_every_steps(2), save_on_signal())
    with Checkpointer(ROOT / "q", save_when=due) as checkpointer:
        yield [checkpointer.save_if_due(STATE, step=n, signalled=RANK == 2 and n == 3) for n in (1, 3)]
    due = save_every_seconds(1e-9 if RANK == 0 else 1e9)
    with Checkpointer(ROOT / "r", save_when=due) as checkpointer:
        yield checkpointer.save_if_due(STATE, step=1, metadata=lambda: {"rank": RANK})
        yield checkpointer.restore(like=STATE).record.metadata
    together.Together.exchange = exchange


def unread():
    """States that no rank has evaluated, or one alone: a rank has then computed sums that others have not."""
    transform = ps.chain(clip_by_global_norm(1.0), ps.optimizers.adam(0.1))
    for kind in (ps.sharded, ps.data_parallel):
        step = kind(storing.loss_fn, transform)
        state = ps.TrainState.create(ps.packed(storing.PARAMS), getattr(step, "transform", transform))
        due = save_any(save_on_best("loss"), save_every_steps(4))
        with Checkpointer(ROOT / kind.__name__, save_when=due) as checkpointer:
            saved = []
            for number in range(1, 5):
                state, metrics = step(state, {"x": mx.full(4, 0.3 * number + RANK)})
                if number % 3 == RANK:
                    metrics["loss"].item()
                if number % 2:
                    checkpointer.save(state, step=number, metrics=metrics)
                else:
                    saved.append(checkpointer.save_if_due(state, step=number, metrics=metrics))
            found = checkpointer.restore(like=state).state
            yield [saved, storing.whole_digest(found) == storing.whole_digest(state)]
        with Checkpointer(ROOT / kind.__name__, save_when=save_every_steps(9)) as checkpointer:
            checkpointer.save(state, step=5)
            state, metrics = step(state, {"x": mx.ones(4)})
            if RANK == 0:
                metrics["loss"].item()
            yield checkpointer.save_if_due(state, step=6, metrics=metrics)


def calls():
    """Ranks in different methods, with other options or other vectors."""
    with Checkpointer(ROOT / "k") as checkpointer:
        checkpointer.save(STATE, step=1)
        yield raised(lambda: checkpointer.wait() if RANK else checkpointer.save(STATE, step=2))
        checkpointer.save(STATE, step=3)
        yield raised(lambda: checkpointer.delete(1 + RANK))
        other = ps.TrainState.create(ps.packed(storing.PARAMS, largest=100), STEP.transform)
        yield raised(lambda: checkpointer.save(other if RANK == 1 else STATE, step=4))
        receipts.io = SimpleNamespace(FileIO=refused if RANK == 2 else io.FileIO)
        yield raised(lambda: checkpointer.save(STATE, step=4)).replace(str(ROOT), "")
        receipts.io = io
    for options in ({"asynchronous": RANK == 0}, {"shard_bytes": 100 + RANK}):
        with Checkpointer(ROOT / "k", **options) as checkpointer:
            yield raised(lambda: checkpointer.save(STATE, step=4))
    yield steps(ROOT / "k")


def refused(path, mode):
    raise PermissionError(errno.EACCES, "Permission denied", path)


def late():
    """A rank sees a new checkpoint late, and one that another writer deletes while it is read."""
    shared.VISIBLE = 20.0
    root, manifests, one = ROOT / "l", store.manifests, newest._one
    with Checkpointer(root) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.save(STATE, step=2)
        checkpointer.wait()
        if RANK == 1:
            times = iter(range(2))
            store.manifests = lambda *a: ([], []) if next(times, 2) < 2 else manifests(*a)
        yield checkpointer.restore(like=STATE).record.step
        store.manifests = manifests

        def deleted(caller, manifest, *rest):
            if RANK == 2 and manifest.record.step == 2:
                shutil.rmtree(manifest.record.path)
            return one(caller, manifest, *rest)

        newest._one = deleted
        yield checkpointer.restore(like=STATE).record.step
        newest._one = one


def killed():
    """Rank 1 is killed while it writes."""

    def write(path, entries, buffers):
        if RANK == 1 and path.parent.name.startswith(".step_00000002"):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return WRITE(path, entries, buffers)

    files._write = write
    with ps.parallel.watchdog(timeout=5), Checkpointer(ROOT) as checkpointer:
        checkpointer.save(STATE, step=1)
        checkpointer.save(STATE, step=2)
        checkpointer.wait()
    yield "not reached"


if __name__ == "__main__":
    chosen = sys.argv[2:]
    print(json.dumps({name: list(globals()[name]()) for name in chosen}))
