"""Write `stored/`: states in every form that the library stores, by the code of an earlier commit.

    git worktree add OLD d6879be
    PYTHONPATH=OLD/src:. python tests/references/make_stored.py

`tests/_checkpoint/test_earlier_files.py` reads the files with the present code. Every number is a small
fraction that follows from its place, so the states are the same on every machine.

The checksums are CRC-32, which every Python has; others need the extra package xxhash.
"""

import shutil
import sys
import warnings
from pathlib import Path

import mlx.core as mx

if __name__ == "__main__":
    sys.modules["xxhash"] = None  # type: ignore[assignment]

import purestep as ps

FOLDER = Path(__file__).parent / "stored"
STEP = 3
RATES = (
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan ademamix adopt amsgrad fromage lamb "
    "lars lion madgrad muon nadam nadamw novograd optimistic_adam optimistic_adam_v2 "
    "optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum simplified_ademamix sm3 sophia yogi"
).split()
NO_RATES = "dadapt_adamw dog dowg polyak_sgd prodigy schedule_free_adamw schedule_free_sgd".split()


def parameters():
    """Return the parameters of every state."""
    return {"w": mx.zeros((2, 3)), "b": mx.zeros(3)}


def train_state():
    """Return a state of AdamW with clipping and accumulation, before it is filled."""
    clip, adamw = ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(0.1, weight_decay=0.1)
    transform = ps.transforms.accumulate(ps.chain(clip, adamw), every=2)
    return ps.TrainState.create(parameters(), transform, model_state={"mean": mx.zeros(3)})


def optimizer_states():
    """Return the first state of every optimizer, before it is filled."""
    transforms = {name: getattr(ps.optimizers, name)(0.1) for name in RATES}
    transforms |= {name: getattr(ps.optimizers, name)() for name in NO_RATES}
    transforms["rmsprop_with_momentum"] = ps.optimizers.rmsprop(0.1, centered=True, momentum=0.9)
    transforms["sgd_with_momentum"] = ps.optimizers.sgd(0.1, momentum=0.9)
    transforms["noisy_sgd"] = ps.optimizers.noisy_sgd(0.1, key=0)
    transforms["mup"] = ps.optimizers.mup(ps.optimizers.adam(0.1), 2.0)
    return {name: transform.init(parameters()) for name, transform in transforms.items()}


def filled(state):
    """Return a state whose numbers follow from their place: eighths from 0 to 15, or integers."""
    places = {path: number for number, path in enumerate(ps.tree.paths(state))}

    def leaf(path, array):
        numbers = (mx.arange(array.size, dtype=mx.int32) * 7 + places[path] * 13) % 121
        exact = numbers / 8 if mx.issubdtype(array.dtype, mx.inexact) else numbers
        return exact.astype(array.dtype).reshape(array.shape)

    return ps.tree.map_with_path(leaf, state)


def batch():
    """Return the batch of the recorded step."""
    return {"x": mx.array([1.0, -1.0])}


def step(state, batch):
    """Return a state with one more step, and a loss that is not finite."""
    return state._replace(step=state.step + 1), {"loss": mx.sqrt(batch["x"]).sum()}


def main():
    """Write all files."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    state = filled(train_state())._replace(step=mx.array(STEP))
    ps.checkpoint.save(FOLDER / "state.safetensors", state)
    ps.checkpoint.save(FOLDER / "optimizers.safetensors", filled(optimizer_states()), shard_bytes=1000)
    (FOLDER / "state.msgpack").write_bytes(ps.checkpoint.to_bytes(state))
    with ps.checkpoint.Checkpointer(FOLDER / "run") as checkpointer:
        checkpointer.save(state, metrics={"loss": 0.5}, metadata={"epoch": 1})
    with warnings.catch_warnings(action="ignore"), ps.replay.record(step, FOLDER / "bundles") as recorder:
        recorder(state, batch())
    for lock in FOLDER.rglob(".lock"):
        lock.unlink()


if __name__ == "__main__":
    main()
