"""A small classifier to train: its loss, transform, parameters and batches."""

import mlx.core as mx
import numpy as np

import purestep as ps
from tests.trees import array

IGNORED = -100


def classifier(params, batch, rng):
    """A linear classifier on [batch, seq, 4] with noise in its inputs, and a metric."""
    x = batch["x"] if rng is None else batch["x"] + 0.0 * mx.random.normal(batch["x"].shape, key=rng)
    logits = x @ params["w"] + params["b"]
    loss = ps.losses.cross_entropy(logits, batch["y"], ignore_index=IGNORED)
    return loss, {"biggest": logits.max(), "mean_logit": ps.Mean.of(logits.mean(-1), batch["y"] != IGNORED)}


PARAMS = {"w": array(0, (4, 3), mx.float32), "b": array(1, (3,), mx.float32), "unused": None}
TRANSFORM = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-2))


def ragged(seed, rows=8, seq=5):
    """A batch in which every row holds another number of real tokens; one may hold none."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, (rows, seq))
    targets[np.arange(seq)[None] >= generator.integers(0, seq + 1, (rows, 1))] = IGNORED
    return {"x": array(seed, (rows, seq, 4), mx.float32), "y": mx.array(targets)}


def start(transform=TRANSFORM, params=PARAMS, **options):
    return ps.TrainState.create(params, transform, **options)


BATCH = ragged(0)


def linear_loss(params, batch, rng):
    return ps.losses.cross_entropy(batch["x"] @ params["w"] + params["b"], batch["y"], ignore_index=IGNORED)


DENSE = {name: leaf for name, leaf in PARAMS.items() if leaf is not None}
