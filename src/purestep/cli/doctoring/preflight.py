"""One forward, backward and step of a small model, against the same numbers in plain Python."""

import math
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep.cli.doctoring.finding import OK, WRONG, Finding

_INPUTS = [[0.5, -1.0], [1.5, 2.0], [-0.25, 0.75]]
_TARGETS = [1.0, -2.0, 0.5]
_WEIGHTS = [0.3, -0.7]
_RATE = 0.1
_REMEDY = "Install purestep and mlx again; if it stays, report both versions and the device"


def preflight() -> Finding:
    """Make a step of linear regression and compare it with the formula; train a small network a few steps."""
    loss, weights = _by_hand()
    transform = ps.optimizers.sgd(_RATE)
    state = ps.TrainState.create({"w": mx.array(_WEIGHTS)}, transform)
    batch = {"x": mx.array(_INPUTS), "y": mx.array(_TARGETS)}
    state, metrics = ps.train_step(_squares, transform)(state, batch)
    got: Any = state.params["w"].tolist()
    figures = {"loss": float(metrics["loss"]), "expected_loss": loss, "weights": got, "expected": weights}
    # Products of float32 may be rounded to TF32, 11 bits, on NVIDIA GPUs.
    if not all(
        math.isclose(a, b, rel_tol=5e-3)
        for a, b in zip([figures["loss"], *got], [loss, *weights], strict=True)
    ):
        said = f"a training step gave loss {figures['loss']:.6g} instead of {loss:.6g}, or other weights"
        return Finding("preflight", WRONG, said, _REMEDY, figures)
    losses = _network()
    figures["losses"] = losses
    if not losses[-1] < losses[0]:
        said = f"the loss of a small network did not fall: {losses[0]:.4g}, then {losses[-1]:.4g}"
        return Finding("preflight", WRONG, said, _REMEDY, figures)
    said = "a forward pass, a backward pass and a step give the expected numbers"
    return Finding("preflight", OK, said, figures=figures)


def _squares(params: Any, batch: Any, rng: mx.array) -> mx.array:
    return mx.square(batch["x"] @ params["w"] - batch["y"]).mean()


def _by_hand() -> tuple[float, list[float]]:
    """Return the loss and the weights after a step, in Python's floating-point numbers."""
    count = len(_TARGETS)
    errors = [
        sum(x * w for x, w in zip(row, _WEIGHTS, strict=True)) - y
        for row, y in zip(_INPUTS, _TARGETS, strict=True)
    ]
    gradient = [
        2 * sum(error * row[k] for error, row in zip(errors, _INPUTS, strict=True)) / count for k in (0, 1)
    ]
    moved = [w - _RATE * g for w, g in zip(_WEIGHTS, gradient, strict=True)]
    return sum(error**2 for error in errors) / count, moved


def _network() -> list[float]:
    def loss_fn(params: Any, batch: Any, rng: mx.array) -> ps.Mean:
        hidden = mx.tanh(batch["x"] @ params["a"])
        return ps.losses.cross_entropy(hidden @ params["b"], batch["y"])

    keys = mx.random.split(mx.random.key(0), 3)
    params = {"a": mx.random.normal((16, 32), key=keys[0]) / 4, "b": mx.zeros((32, 4))}
    batch = {"x": mx.random.normal((64, 16), key=keys[1]), "y": mx.random.randint(0, 4, (64,), key=keys[2])}
    transform = ps.optimizers.adamw(0.01)
    state, step = ps.TrainState.create(params, transform), ps.train_step(loss_fn, transform)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses
