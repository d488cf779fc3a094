"""The checkpoints of a run, under faults."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from purestep import checkpoint as ck
from purestep._checkpoint.disk import lock
from purestep.checkpoint import Checkpointer
from tests._checkpoint.syscalls.operations import (
    DEAD,
    LIKE,
    Operation,
    Outcome,
    complaints_of,
    left_over,
    nothing,
    reading,
    state,
)
from tests.trees import same_bits


def three(root: Path) -> None:
    """Steps 1, 2 and 3, the last the best; 3 and 2 in this order, so that serials are not steps."""
    with Checkpointer(root / "run", shard_bytes=None) as checkpointer:
        for step in (1, 3, 2):
            checkpointer.save(state(step), step=step, metrics={"loss": 1 / step})


def with_leftovers(root: Path) -> None:
    three(root)
    for name in ("step_00000004", "step_00000001"):
        hidden = root / "run" / f".{name}.{lock.host()}.{DEAD}.0a1b2c3dtmp"
        shutil.copytree(root / "run" / "step_00000003", hidden)


def writing(
    prepare: Callable[[Path], object],
    saves: list[tuple[int, float]],
    drops: set[int],
    late: bool,
    **more: Any,
) -> Operation:
    """Save steps, each of a state; `drops` may be removed by retention. Faults begin late: with `close`."""
    options: dict[str, Any] = {"shard_bytes": None, **more}

    def act(directory: Path, armed: Any, say: Any) -> Any:
        errors, submitted = [], []
        with contextlib.nullcontext() if late else armed:
            checkpointer = Checkpointer(directory / "run", **options)
            for step, number in saves:
                try:
                    checkpointer.save(state(number), step=step)
                except Exception as error:
                    errors.append(error)
                    if not re.search(r"step \d+ (was not|is) saved", str(error)):
                        continue  # it was refused at once
                submitted.append(step)
                if not options.get("asynchronous", True):
                    said = [error for error in errors if f"step {step} was not saved" in str(error)]
                    say(f"{step}" if not said else "")
        with armed if late else contextlib.nullcontext():
            try:
                checkpointer.wait()
                say(f"{submitted[-1]}" if submitted and not errors else "")
            except Exception as error:
                errors.append(error)
            if late:
                checkpointer.close()
        return checkpointer, submitted, errors

    def check(directory: Path, outcome: Outcome) -> Any:
        root = directory / "run"
        values = {1: 1.0, 2: 2.0, 3: 3.0} if prepare is not nothing else {}
        order = [1, 3, 2] if values else []
        if outcome.killed:
            yield from after_kill(root, order, values, saves, outcome.said, drops)
            yield from goes_on(root, {})
            return
        checkpointer, submitted, errors = outcome.value or (None, [], [outcome.error])
        text = "\n".join("\n".join([str(e), *getattr(e, "__notes__", [])]) for e in errors)
        kept, changed = [(step, None) for step in order], dict(values)
        for step, number in saves:
            if step in submitted and f"step {step} was not saved" not in text:
                kept = [entry for entry in kept if entry[0] != step] + [(step, number)]
                changed[step] = number
        found = listed(root)
        steps = [step for step, _ in found]
        if not submitted and not errors:
            yield "nothing was saved, and nobody said so"
        for step, number in found:
            if step not in changed or number != changed[step]:
                yield f"step {step} holds {number}"
        for step, _ in kept:
            if step not in steps and step not in drops:
                yield f"!step {step} is said to be saved and is not there: {steps}: {text}"
        for step in steps:
            if step not in [entry[0] for entry in kept]:
                yield f"!step {step} is not said to be saved and is there: {text}"
        if kept and (not steps or steps[-1] != kept[-1][0]):
            yield f"restores {steps} instead of {kept[-1]}: {text}"
        if checkpointer is not None and not late:  # `late` closed it
            checkpointer.save(state(8), step=8)  # the same object goes on
            checkpointer.close()
            if (8, 8.0) not in listed(root):
                yield "the next save of the same object is not there"
            yield from left_over(root)
            changed[8] = 8.0
        yield from goes_on(root, changed)
        for error in errors:
            yield from complaints_of(error, directory)

    return Operation(prepare, act, check)


def listed(root: Path) -> list[tuple[int, float]]:
    """Return step and number of the state of every checkpoint in order of saving; check that all agree."""
    reader = Checkpointer(root)
    records = reader.list()
    found = []
    for record in records:
        stored = reader.restore(record.step, like=LIKE).state
        found.append((record.step, float(stored["step"].item())))
        assert same_bits(stored, state(found[-1][1])), record
    if records:
        assert reader.restore(like=LIKE).record.step == records[-1].step
    problems = reader.verify()
    assert not any(problems.values()), problems
    serials = [record.serial for record in records]
    assert len(set(serials)) == len(serials), f"serials {serials}"
    return found


def after_kill(
    root: Path, order: list[int], values: Any, saves: Any, said: list[str], drops: set[int]
) -> Any:
    claimed = [int(word) for word in said if word]
    stages = [*order[-1:], *(step for step, _ in saves)]
    found = listed(root)
    newest = found[-1] if found else None
    least = max((stages.index(step) for step in claimed), default=0)
    possible = [None] if not order and not claimed else []
    possible += [(step, dict(saves).get(step, values.get(step))) for step in stages[least:]]
    possible += [(step, values[step]) for step in order[-1:] if not claimed]
    if newest not in possible:
        yield f"after a kill, restores {newest}, possible were {possible}"
    for step, number in found:
        if number not in (values.get(step), dict(saves).get(step)):
            yield f"after a kill, step {step} holds {number}"
    missing = set(order) - {step for step, _ in found} - drops
    if missing:
        yield f"after a kill, steps {missing} are gone"


def goes_on(root: Path, values: dict[int, float]) -> Any:
    """Check that the directory is free, that a new writer's save is the newest, and that it tidies up."""
    try:
        with Checkpointer(root, shard_bytes=None) as checkpointer:
            checkpointer.save(state(9), step=9)
    except ck.LockedError as error:
        yield f"locked: {error}"
        return
    found = listed(root)
    if found[-1] != (9, 9.0):
        yield f"the next save is not the newest: {found}"
    yield from (f"step {step} holds {n}" for step, n in found if n != {**values, 9: 9.0}.get(step, n))
    yield from left_over(root)


def deleting() -> Operation:
    def act(directory: Path, armed: Any, say: Any) -> Any:
        checkpointer = Checkpointer(directory / "run")
        with armed:
            try:
                checkpointer.delete(1)
                say("deleted")
            except OSError as error:
                return checkpointer, error
        return checkpointer, None

    def check(directory: Path, outcome: Outcome) -> Any:
        root = directory / "run"
        there = 1 in [step for step, _ in listed(root)]
        if outcome.killed:
            if outcome.said and there:
                yield "deleted, and there"
        elif outcome.error is not None:
            raise outcome.error
        else:
            checkpointer, error = outcome.value
            if there != (error is not None and "is deleted" not in str(error)):
                yield f"!there is {there}: {error!r}"
            if error is not None:
                yield from complaints_of(error, directory)
            checkpointer.save(state(8), step=8)
            checkpointer.close()
            yield from left_over(root)
        if {2, 3} - {step for step, _ in listed(root)}:
            yield "others are deleted"
        yield from goes_on(root, {1: 1.0, 2: 2.0, 3: 3.0})

    return Operation(three, act, check)


def verified(found: Any) -> bool:
    """Tell whether nothing is called damaged; a device's error may be listed as just that."""
    lines = [line for problems in found.values() for line in problems]
    return found.keys() == {1, 2, 3} and all("cannot be read (Input/output error)" in line for line in lines)


def listed_steps(directory: Path) -> list[int]:
    return [record.step for record in Checkpointer(directory / "run").list()]


FORE: dict[str, Any] = {"asynchronous": False}
CHECKPOINTS = {
    "first": writing(nothing, [(1, 1.0)], set(), False, **FORE),
    "next": writing(three, [(4, 4.0)], set(), False, **FORE),
    "again": writing(three, [(2, 7.0)], set(), False, **FORE),
    "divided": writing(three, [(4, 4.0)], set(), False, asynchronous=False, shard_bytes=100),
    "retention": writing(
        three, [(4, 4.0)], {1, 2}, False, keep=ck.keep_last(1), metric="loss", mode="min", **FORE
    ),
    "background": writing(three, [(4, 4.0), (5, 5.0)], {1, 2, 3, 4}, False, keep=ck.keep_last(1)),
    "after a kill": writing(with_leftovers, [(4, 4.0)], set(), False, **FORE),
    "close": writing(three, [(4, 4.0)], set(), True, **FORE),
    "delete": deleting(),
    "restore": reading(
        three, lambda d: Checkpointer(d / "run").restore(like=LIKE), lambda f: same_bits(f.state, state(2))
    ),
    "restore a step": reading(
        three, lambda d: Checkpointer(d / "run").restore(1, like=LIKE), lambda f: same_bits(f.state, state(1))
    ),
    "list": reading(three, listed_steps, lambda f: f == [1, 3, 2]),
    "latest": reading(three, lambda d: Checkpointer(d / "run").latest(), lambda f: f and f.step == 2),
    "best": reading(three, lambda d: Checkpointer(d / "run").best("loss"), lambda f: f and f.step == 3),
    "verify": reading(three, lambda d: Checkpointer(d / "run").verify(), verified),
}
