"""States and weights in files, under faults."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep import checkpoint as ck
from purestep._checkpoint.disk import lock
from tests._checkpoint.syscalls.operations import (
    DEAD,
    LIKE,
    Operation,
    Outcome,
    left_over,
    nothing,
    reading,
    state,
)
from tests.trees import same_bits

WEIGHTS = {"w": mx.full(40, 1.0), "b": mx.ones(7)}


def fresh(read: Callable[[], Any]) -> float | None:
    """Return the number of the state that is read, or `None` where there is none; anything else is wrong."""
    try:
        found = read()
    except FileNotFoundError:
        return None
    number = float(found["step"].item())
    return number if same_bits(found, state(number)) else -1.0


def saving(name: str, old: float | None, shard: int | None, leftovers: bool = False) -> Operation:
    def prepare(directory: Path) -> None:
        if old is not None:
            ck.save(directory / name, state(old), shard_bytes=shard)
        if leftovers:
            host = lock.host()
            for left in (name, "s-00002-of-00009.safetensors", "s.safetensors.index.json"):
                (directory / f".{left}.{host}.{DEAD}.0a1b2c3d.tmp.safetensors").write_bytes(b"half")
            (directory / f"{name.removesuffix('.safetensors')}-00001-of-00003.safetensors").write_bytes(b"x")

    def act(directory: Path, armed: Any, say: Any) -> None:
        with armed:
            ck.save(directory / name, state(2), shard_bytes=shard)
            say("saved")

    def check(directory: Path, outcome: Outcome) -> Any:
        file = directory / name
        found = fresh(lambda: ck.load(file, like=LIKE))
        if outcome.killed:
            if found not in ((2.0,) if outcome.said else (2.0, old)):
                yield f"holds {found}"
        elif outcome.error is None or re.search(
            r"^(?!.*index.json was not written).*is written and can be read", str(outcome.error)
        ):
            if found != 2.0:
                yield f"holds {found}, said to be written"
        elif found != old:
            yield f"!holds {found}, the error says nothing of it"
        if shard is not None and found is not None:
            for file in directory.rglob("*.safetensors*"):
                file.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ck.save(directory / name, state(3), shard_bytes=shard)
        if fresh(lambda: ck.load(directory / name, like=LIKE)) != 3.0:
            yield "the next save cannot be read"
        yield from left_over(directory)

    return Operation(prepare, act, check)


def exporting() -> Operation:
    def act(directory: Path, armed: Any, say: Any) -> None:
        with armed:
            ck.save_weights(directory / "out", WEIGHTS, config={"a": 1}, shard_bytes=100)
            say("written")

    def check(directory: Path, outcome: Outcome) -> Any:
        out = directory / "out"
        whole = out.exists() and same_bits(ck.load_weights(out, like=WEIGHTS), WEIGHTS)
        if out.exists() and not (whole and (out / "config.json").read_text() == '{\n    "a": 1\n}\n'):
            yield "holds a part"
        if outcome.killed:
            if outcome.said and not whole:
                yield "holds nothing, said to be written"
        elif whole != (outcome.error is None or "is written and can be read" in str(outcome.error)):
            yield f"!whole is {whole}, the error says otherwise"
        if whole:
            return
        ck.save_weights(out, WEIGHTS)
        if not same_bits(weights(out), WEIGHTS):
            yield "the next export cannot be read"
        yield from left_over(directory)

    return Operation(nothing, act, check)


def one_file(directory: Path) -> None:
    ck.save(directory / "s.safetensors", state(1))


def divided(directory: Path) -> None:
    ck.save(directory / "s.safetensors", state(1), shard_bytes=100)


def foreign(directory: Path) -> None:
    mx.save_safetensors(str(directory / "model.safetensors"), WEIGHTS)


def holds_one(found: Any) -> bool:
    return same_bits(found, state(1))


def weights(directory: Path) -> Any:
    return ck.load_weights(directory, like={name: mx.zeros_like(array) for name, array in WEIGHTS.items()})


FILES = {
    "save": saving("a/b/s.safetensors", None, None),
    "save over": saving("s.safetensors", 1.0, None),
    "save over, after a kill": saving("s.safetensors", 1.0, None, leftovers=True),
    "save divided": saving("s.safetensors", None, 100),
    "save divided, after a kill": saving("s.safetensors", None, 100, leftovers=True),
    "load": reading(one_file, lambda d: ck.load(d / "s.safetensors", like=LIKE), holds_one),
    "load divided": reading(divided, lambda d: ck.load(d / "s.safetensors", like=LIKE), holds_one),
    "save_weights": exporting(),
    "load_weights": reading(foreign, weights, lambda found: same_bits(found, WEIGHTS)),
}
