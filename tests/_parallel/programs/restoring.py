"""Restore a checkpoint, if there is one, make three steps of `sharded`, and save another one."""

import sys

import mlx.core as mx
from scenarios import BATCH, CLIPPED, PARAMS, RANK, difference, masked, rows_of

import purestep as ps

before, after = sys.argv[1:]
params = ps.packed(PARAMS)
step = ps.sharded(masked, CLIPPED)
if before == "none":
    state = ps.TrainState.create(params, step.transform)
else:
    whole = ps.checkpoint.load(before, like=ps.TrainState.create(params, CLIPPED))
    state = ps.parallel.divided(whole, step)
if RANK == 0:  # one rank alone may predict its memory
    assert ps.memory.predict(step, state, rows_of(BATCH, RANK)).peak > 0
for _ in range(3):
    state, _ = step(state, rows_of(BATCH, RANK))
    if RANK % 2 == 0:  # the others have sums left to do when they gather
        mx.eval(state)
whole = ps.parallel.gathered(state, to=0)
assert (whole is None) == (RANK > 0)
if whole is not None:
    ps.checkpoint.save(after, whole)
    known = ps.TrainState.create(PARAMS, CLIPPED)
    single = ps.train_step(masked, CLIPPED)
    for _ in range(int(whole.step.item())):
        known, _ = single(known, BATCH)
    print(whole.step.item(), difference(ps.unpacked(whole), known))
