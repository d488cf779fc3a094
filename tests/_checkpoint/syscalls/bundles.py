"""Bundles of replay, under faults."""

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep import replay
from tests._checkpoint.syscalls.operations import Operation, Outcome, left_over, nothing, reading, state
from tests.trees import same_bits


def step(given: Any, batch: Any) -> Any:
    return given, {"loss": mx.log(batch["x"])}


def recorded(directory: Path) -> None:
    with warnings.catch_warnings(action="ignore"), replay.record(step, directory / "bundles") as recorder:
        recorder(state(1), {"x": mx.array(0.0)})


def recording() -> Operation:
    def act(directory: Path, armed: Any, say: Any) -> Any:
        with armed, warnings.catch_warnings(action="ignore"):
            with replay.record(step, directory / "bundles") as recorder:
                recorder(state(1), {"x": mx.array(0.0)})
            say("written")

    def check(directory: Path, outcome: Outcome) -> Any:
        place = directory / "bundles" / "step_00000000"
        there = place.exists()
        if there and not is_bundle(replay.load(place)):
            yield "the bundle is another"
        if outcome.said and not there:
            yield "no bundle"
        if outcome.error is not None and there != ("is written and can be read" in str(outcome.error)):
            yield f"!there is {there}: {outcome.error!r}"
        recorded(directory)
        if not any(is_bundle(replay.load(found)) for found in directory.glob("bundles/step*")):
            yield "the next bundle is not there"
        yield from left_over(directory)

    return Operation(nothing, act, check)


def is_bundle(found: Any) -> bool:
    return same_bits(found.state, state(1)) and found.reason == ("metrics.loss",) and found.step == 0


BUNDLES = {
    "replay.record": recording(),
    "replay.load": reading(recorded, lambda d: replay.load(d / "bundles" / "step_00000000"), is_bundle),
}
