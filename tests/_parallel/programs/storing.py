"""Make or restore states of `sharded`, save them by all ranks, and print digests of the whole states."""

import hashlib
import json
import sys

import mlx.core as mx

import purestep as ps
from purestep.transforms import accumulate, averaged, clip_by_global_norm, ema, masked, matrices

GROUP = mx.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()

# Sizes that no number of ranks divides, in two dtypes; one array is longer than the part of a rank.
SHAPES = {"big": (7, 53), "w": (5, 3), "b": (3,), "one": (1,)}
PARAMS = {
    **{name: mx.random.normal(shape, key=mx.random.key(i)) for i, (name, shape) in enumerate(SHAPES.items())},
    "half": mx.random.normal((3, 11), key=mx.random.key(9)).astype(mx.bfloat16),
    "empty": {},
}
TRANSFORM = ps.chain(
    clip_by_global_norm(1.0),
    masked(ema(0.9), matrices),
    averaged(accumulate(ps.optimizers.adamw(1e-2, weight_decay=0.1, mask=matrices), every=2), decay=0.9),
)


def loss_fn(params, batch, rng):
    squares = [
        mx.square(leaf.astype(mx.float32) - batch["x"].mean()).mean() for leaf in ps.tree.leaves(params)
    ]
    return sum(squares, mx.array(0.0))


def digest(state):
    """Return a hash of all bits of a whole state, however it is built."""
    found = sorted(ps.tree.items(ps.unpacked(state)))
    return hashlib.sha256(
        b"".join(path.encode() + bytes(leaf.reshape(-1).view(mx.uint8)) for path, leaf in found if leaf.size)
    ).hexdigest()


def made(step, params):
    """Return a state after some steps; the accumulators are half full."""
    state = ps.TrainState.create(params, step.transform, seed=3)
    for number in range(3):
        state, _ = step(state, {"x": mx.full(4, 0.5 * number)})
        mx.eval(state)
    return state


def whole_digest(state):
    return digest(ps.parallel.gathered(state))


def work(before, after, options):
    """Restore a state, or make one; save it, and another one as the next step."""
    step = ps.sharded(loss_fn, TRANSFORM)
    like = ps.TrainState.create(ps.packed(PARAMS), step.transform, seed=1)
    if before == "none":
        state = made(step, ps.packed(PARAMS))
    elif before.endswith(".safetensors"):
        state = ps.checkpoint.load(before, like=like)
    else:
        with ps.checkpoint.Checkpointer(before) as checkpointer:
            state = checkpointer.restore(3, like=like).state
    with ps.checkpoint.Checkpointer(after, **options) as checkpointer:
        checkpointer.save(state, step=3, metadata={"ranks": SIZE})
        again = checkpointer.restore(like=like)
        checkpointer.save(ps.tree.map(lambda leaf: leaf + 1, state), step=4)
    return [whole_digest(state), whole_digest(again.state), again.record.metadata["ranks"]]


def main():
    print(json.dumps([work(*each) for each in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
