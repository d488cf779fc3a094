"""Steps to export, with a state and a batch."""

import importlib

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from tests._graph.steps import seeded

BATCH = {"x": mx.random.normal((8, 8), key=mx.random.key(1)), "y": mx.array([0, 1, 2, 3] * 2)}


def perceptron(transform=None, *, step=ps.train_step, dtype=None, pack=False, **options):
    """Return a step of a model with Dropout, GELU and LayerNorm, its state and a batch."""
    apply, params, _ = ps.functional(seeded(_model))
    clipped = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-2))
    transform = clipped if transform is None else transform

    def loss_fn(params, batch, rng):
        return ps.losses.cross_entropy(apply(params, batch["x"], rng=rng), batch["y"])

    loss = loss_fn if dtype is None else ps.compute_in(loss_fn, dtype)
    state = ps.TrainState.create(ps.packed(params) if pack else params, transform, seed=3)
    return step(loss, transform, **options), state, BATCH


def _model():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(16), nn.Linear(16, 4))


def batch_norm():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm(8), nn.ReLU()))
    apply, params, model_state = ps.functional(model)

    def loss_fn(params, model_state, batch, rng):
        out, model_state = apply(params, batch, model_state=model_state, rng=rng)
        return mx.square(out).mean(), {"mean": out.mean()}, model_state

    transform = ps.optimizers.sgd(0.1, momentum=0.9)
    state = ps.TrainState.create(params, transform, model_state=model_state)
    return ps.train_step(loss_fn, transform, stateful=True), state, mx.random.normal((4, 8, 8, 3), key=KEY)


def loss_scaled():
    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.adamw(1e-2))
    return perceptron(transform, step=ps.loss_scaled_step, dtype=mx.float16)


def scanned():
    step, state, batch = perceptron()
    return ps.scan(step, 2), state, ps.tree.map(lambda x: mx.stack([x, x]), batch)


def members(**options):
    step, state, batch = perceptron(**options)
    return ps.population(step), ps.populations.stacked([state, state.replace(rng=KEY)]), batch


def evaluation():
    _, state, batch = perceptron()

    def loss_fn(params, batch, rng):
        losses = ps.Mean.of(batch["x"] @ params["layers"][0]["weight"].T)
        return losses + 0.1 * ps.Mean.of(params["layers"][0]["bias"]), {"mean": losses}

    return ps.eval_step(loss_fn), state, batch


def language_model(name="gpt2"):
    """Return a step of a tiny model of mlx-lm in bfloat16; gpt2 adds to an embedding in place."""
    sizes = {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 64}
    module = importlib.import_module(f"mlx_lm.models.{name}")
    args = module.ModelArgs(model_type=name, layer_norm_epsilon=1e-5, **sizes)
    apply, params, _ = ps.functional(seeded(module.Model, args))

    def loss_fn(params, batch, rng):
        inputs, targets = ps.losses.shift(batch)
        return ps.losses.cross_entropy(apply(params, inputs, rng=rng), targets)

    transform = ps.optimizers.adamw(1e-3)
    state = ps.TrainState.create(params, transform)
    tokens = mx.random.randint(0, 64, (2, 17), key=KEY)
    return ps.train_step(ps.compute_in(loss_fn, mx.bfloat16), transform), state, tokens


KEY = mx.random.key(7)
STEPS = {
    "adamw": perceptron,
    "sgd": lambda: perceptron(ps.optimizers.sgd(0.1)),
    "microbatches": lambda: perceptron(microbatches=2),
    "bfloat16": lambda: perceptron(dtype=mx.bfloat16),
    "packed": lambda: perceptron(pack=True),
    "batch_norm": batch_norm,
    "loss_scaled": loss_scaled,
    "scanned": scanned,
    "population": members,
    "packed population": lambda: members(pack=True),
    "evaluation": evaluation,
    "language_model": language_model,
}
