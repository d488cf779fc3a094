"""What type checkers see of checkpoints."""

from dataclasses import dataclass
from typing import Any, reveal_type

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


@dataclass
class Args:
    model_type: str = "llama"


def files(state: ps.TrainState, params: dict[str, mx.array]) -> None:
    reveal_type(ps.checkpoint.load("state.safetensors", like=state))  # -> TrainState
    reveal_type(ps.checkpoint.load("state.safetensors", like=params, cast=True))  # -> dict[str, array]
    reveal_type(ps.checkpoint.load("state.safetensors"))  # -> Any
    reveal_type(ps.checkpoint.load_weights("model", like=params))  # -> dict[str, array]
    reveal_type(ps.checkpoint.load_weights("model", like=nn.Linear(2, 1)))  # -> Linear
    ps.checkpoint.load_weights("model")  # error: no template
    ps.checkpoint.save_weights("model", params, config={"model_type": "llama"})
    ps.checkpoint.save_weights("model", nn.Linear(2, 1), params, base="base")
    ps.checkpoint.save_weights("model", params, config=Args())
    ps.checkpoint.save_weights("model", params, config=3)  # error: not a configuration
    ps.checkpoint.save_weights("model")  # error: no model
    ps.checkpoint.load(3, like=params)  # error: not a path


def in_bytes(state: ps.TrainState) -> None:
    data = ps.checkpoint.to_bytes(state)
    reveal_type(data)  # -> bytes
    reveal_type(ps.checkpoint.from_bytes(data, like=state))  # -> TrainState
    reveal_type(ps.checkpoint.from_bytes(data))  # -> Any


def runs(state: ps.TrainState, template: Any) -> None:
    keep = ps.checkpoint.keep_any(ps.checkpoint.keep_last(2), lambda records: {records[0].step})
    with ps.checkpoint.Checkpointer("run", keep=keep, metric="loss") as checkpointer:
        checkpointer.save(state, metrics={"loss": mx.array(0.0)})
        restored, record = checkpointer.restore(like=state)
        reveal_type(restored)  # -> TrainState
        reveal_type(record)  # -> Record
        reveal_type(checkpointer.restore(3, like=state).state)  # -> TrainState
        reveal_type(checkpointer.restore().state)  # -> Any
        reveal_type(checkpointer.restore(like=template).state)  # -> Any
        reveal_type(checkpointer.best())  # -> Record | None
        reveal_type(checkpointer.verify())  # -> dict[int, list[str]]
    ps.checkpoint.Checkpointer("run", keep=2)  # error: not a policy
