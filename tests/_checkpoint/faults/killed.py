"""A run that a test kills: every state follows from the one before."""

import mlx.core as mx

import purestep as ps

TRANSFORM = ps.optimizers.adam(0.01)

WIDTH = 200  # three arrays of 160 kB: a save takes a few milliseconds, most of them in the kernel


def loss_fn(params, batch, rng):
    noise = mx.random.normal(batch.shape, key=rng)
    return mx.square(params["w"] @ (batch + noise)).mean()


def train(state, steps):
    """Yield the states of a run that has no memory but its state."""
    step = ps.train_step(loss_fn, TRANSFORM)
    for number in range(int(state.step.item()), steps):
        state, _ = step(state, mx.full((WIDTH,), float(number % 7)))
        mx.eval(state)
        yield state


def start():
    return ps.TrainState.create({"w": mx.eye(WIDTH)}, TRANSFORM, seed=5)
