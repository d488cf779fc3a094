"""A run of `fit` in which rank 1 fails or is killed while the others wait for it in an operation of MLX."""

import os
import signal
import sys

import mlx.core as mx

import purestep as ps
from purestep._loop.core import alarm

alarm._GRACE = 1.0
RANK = mx.distributed.init().rank()


def loss_fn(params, batch, rng):
    return ps.Mean.of(mx.square(params["w"] - batch["x"]))


def measure(state):
    if RANK == 1 and sys.argv[1] == "raise":
        raise ValueError("a bad row")
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return mx.distributed.all_sum(state.params["w"]).item()


transform = ps.optimizers.sgd(0.1)
step = ps.data_parallel(loss_fn, transform)
state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
data = ps.data.for_rank([{"x": mx.arange(6) * 1.0}])
ps.fit(step, state, data, steps=4, evaluate=ps.Evaluation(measure, every=2))
