"""A small run: a model, its step, and sources of each kind."""

import mlx.core as mx
import numpy as np

import purestep as ps

FEATURES = np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
TARGETS = FEATURES @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)


def loss_fn(params, batch, rng):
    noise = 0.0 if rng is None else 0.01 * mx.random.normal(batch["y"].shape, key=rng)
    return ps.Mean.of(mx.square(batch["x"] @ params["w"] + noise - batch["y"]))


def batch_of(number, rows=8):
    chosen = np.random.default_rng(number).integers(0, len(FEATURES), rows)
    return {"x": mx.array(FEATURES[chosen]), "y": mx.array(TARGETS[chosen])}


class At:
    """Batches by step, with epochs of a given length."""

    def __init__(self, length=None, seed=0):
        self.length, self.seed, self.asked = length, seed, []

    def at(self, step):
        self.asked.append(step)
        return batch_of(self.seed + step)

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


TRANSFORM = ps.optimizers.adam(0.05)
STEP = ps.train_step(loss_fn, TRANSFORM)


def start(transform=TRANSFORM, seed=0):
    return ps.TrainState.create({"w": mx.zeros(4)}, transform, seed=seed)


def bare(state, batches, step=STEP):
    """Return the states and metrics of a loop that does nothing else."""
    made = []
    for batch in batches:
        state, metrics = step(state, batch)
        mx.eval(state, metrics)
        made.append((state, metrics))
    return made


def assert_same(first, second):
    """Assert that two trees are equal bit for bit."""
    assert ps.tree.alike(first, second)
    for (path, a), (_, b) in zip(ps.tree.items(first), ps.tree.items(second), strict=True):
        assert memoryview(a).tobytes() == memoryview(b).tobytes(), path
