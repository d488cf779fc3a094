"""The schedule, the optimizers and the step of a configuration, against formulas in numpy."""

import math
from typing import get_args

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._loop.config.building import (
    create_mup_optimizer,
    create_optimizer,
    create_schedule,
    create_step,
)
from purestep._loop.config.config import MeasureName, OptimizerName, ScheduleName, TrainConfig
from tests.running import normal

SCHEDULES, OPTIMIZERS = get_args(ScheduleName), get_args(OptimizerName)
PLAIN = {"warmup_steps": 0, "lr_schedule": "constant", "max_grad_norm": 0.0}
PARAMS = {
    "embedding": {"weight": normal(5, 4)},
    "fc": {"weight": normal(4, 4) + 1, "bias": normal(4) + 2},
    "norm": {"weight": normal(4) + 3},
}


def params():
    """Return the parameters of a small model."""
    return ps.tree.map(mx.array, PARAMS)


def moved(transform, gradients, start=None):
    """Return the parameters after these gradients, by path."""
    now = params() if start is None else start
    state = transform.init(now)
    for gradient in gradients:
        updates, state = transform.update(gradient, state, now)
        now = ps.apply_updates(now, updates)
    return {path: np.array(leaf) for path, leaf in ps.tree.items(now)}


def gradients(count, scale=1.0):
    """Return trees of gradients, of the same numbers for each count."""
    rng = np.random.default_rng(1)
    draw = lambda p: mx.array((scale * rng.normal(size=p.shape)).astype(np.float32))  # noqa: E731
    return [ps.tree.map(draw, params()) for _ in range(count)]


def rates(config):
    """Return the rates of all steps."""
    schedule = create_schedule(config)
    return [schedule(mx.array(count)).item() for count in range(config.max_steps + 2)]


def formula(config, count):
    """Return the rate that the documentation gives, in float64."""
    peak, warmup, total = config.learning_rate, config.warmup_steps, config.max_steps
    end = config.min_lr_ratio * peak
    if count < warmup:
        return peak * (count + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return peak
    if count >= total:
        return end
    if config.lr_schedule == "wsd":
        begin = max(total - max(round(0.2 * total), 1), warmup)
        return peak + (end - peak) * max(count - begin, 0) / (total - begin)
    done = (count - warmup) / (total - warmup)
    if config.lr_schedule == "cosine":
        return end + (peak - end) * (1 + math.cos(math.pi * done)) / 2
    return peak + (end - peak) * done


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (0, 10), (3, 10), (9, 10), (10, 10), (8, 10)])
def test_every_schedule_takes_every_warmup(name, warmup, total):
    config = TrainConfig(learning_rate=2.0, warmup_steps=warmup, max_steps=total, lr_schedule=name)
    found = rates(config)
    np.testing.assert_allclose(found, [formula(config, n) for n in range(total + 2)], rtol=1e-6)
    assert min(found[:total]) > 0


def test_the_decay_ratio_moves_the_start_of_the_decay():
    config = TrainConfig(learning_rate=1.0, warmup_steps=0, max_steps=10, lr_schedule="wsd", decay_ratio=0.5)
    np.testing.assert_allclose(rates(config)[:11], [1, 1, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1], rtol=1e-6)
    whole = config.replace(decay_ratio=1.0, warmup_steps=4)
    np.testing.assert_allclose(rates(whole)[3:7], [0.8, 1.0, 0.85, 0.7], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_takes_every_schedule(name, schedule):
    for warmup, total in ((0, 1), (2, 2), (1, 3)):
        config = TrainConfig(
            optimizer=name, lr_schedule=schedule, warmup_steps=warmup, max_steps=total, learning_rate=0.01
        )
        after = moved(create_optimizer(config), gradients(total))
        before = {path: np.array(leaf) for path, leaf in ps.tree.items(params())}
        for path, leaf in after.items():
            assert np.isfinite(leaf).all()
            assert (leaf != before[path]).any()


def adam_direction(grads, b1=0.9, b2=0.999, eps=1e-8):
    """Yield Adam's steps for a rate of 1, with both biases corrected, in float64."""
    mu = nu = 0.0
    for t, g in enumerate(grads, start=1):
        g = np.array(g, np.float64)
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
        yield (mu / (1 - b1**t)) / (np.sqrt(nu / (1 - b2**t)) + eps)


def test_adamw_is_corrected_for_its_bias_and_decays_matrices_alone():
    config = TrainConfig(learning_rate=0.01, weight_decay=0.5, b1=0.8, b2=0.95, **PLAIN)
    grads = gradients(4)
    after = moved(create_optimizer(config), grads)
    for path, start in ps.tree.items(params()):
        want = np.array(start, np.float64)
        decay = 0.5 if start.ndim >= 2 else 0.0
        for step in adam_direction([dict(ps.tree.items(g))[path] for g in grads], 0.8, 0.95):
            want = want - 0.01 * (step + decay * want)
        np.testing.assert_allclose(after[path], want, rtol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_decays_norms_or_biases(name):
    settings = {"optimizer": name, "learning_rate": 0.1, **PLAIN}
    still = ps.tree.map(mx.zeros_like, params())
    none = moved(create_optimizer(TrainConfig(weight_decay=0.0, **settings)), [still] * 2)
    some = moved(create_optimizer(TrainConfig(weight_decay=0.2, **settings)), [still] * 2)
    for path, leaf in some.items():
        assert (leaf != none[path]).any() == (leaf.ndim >= 2), path


def test_the_mask_selects_what_decays():
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, **PLAIN)
    still = ps.tree.map(mx.zeros_like, params())
    after = moved(create_optimizer(config, mask=ps.transforms.by_path("*.bias")), [still])
    for path, leaf in ps.tree.items(params()):
        factor = 0.95 if path == "fc.bias" else 1.0
        np.testing.assert_allclose(after[path], factor * np.array(leaf), rtol=1e-6)


def test_sgd_and_adam_add_the_decay_to_the_gradient_as_pytorch_does():
    grads, w = gradients(3), np.array(PARAMS["fc"]["weight"], np.float64)
    config = TrainConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.8, **PLAIN)
    after, buffer, want = moved(create_optimizer(config), grads), 0.0, w
    for g in grads:
        buffer = 0.8 * buffer + np.array(g["fc"]["weight"], np.float64) + 0.5 * want
        want = want - 0.1 * buffer
    np.testing.assert_allclose(after["fc.weight"], want, rtol=1e-5)
    assert config.replace(momentum=None) != config
    config = TrainConfig(optimizer="adam", learning_rate=0.1, weight_decay=0.5, **PLAIN)
    one = moved(create_optimizer(config), grads[:1])["fc.weight"]
    np.testing.assert_allclose(
        one, w - 0.1 * np.sign(np.array(grads[0]["fc"]["weight"]) + 0.5 * w), rtol=1e-5
    )


def test_lion_keeps_its_own_means_unless_they_are_given():
    grads, w = gradients(3), np.array(PARAMS["fc"]["weight"], np.float64)
    for given, (b1, b2) in (({}, (0.9, 0.99)), ({"b1": 0.5, "b2": 0.6}, (0.5, 0.6))):
        config = TrainConfig(optimizer="lion", learning_rate=0.1, weight_decay=0.5, **PLAIN, **given)
        after, mu, want = moved(create_optimizer(config), grads), 0.0, w
        for g in (np.array(g["fc"]["weight"], np.float64) for g in grads):
            want = want - 0.1 * (np.sign(b1 * mu + (1 - b1) * g) + 0.5 * want)
            mu = b2 * mu + (1 - b2) * g
        np.testing.assert_allclose(after["fc.weight"], want, rtol=1e-5)


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_adafactor_honours_the_learning_rate(rate):
    """The factors are those of arXiv:1804.04235, for a matrix of at least 128 rows and columns."""
    w, g = np.array(normal(130, 140), np.float64), np.array(normal(140, 130).T, np.float64)
    config = TrainConfig(optimizer="adafactor", learning_rate=rate, weight_decay=0.1, **PLAIN)
    transform, start = create_optimizer(config), {"w": mx.array(w.astype(np.float32))}
    after = moved(transform, [{"w": mx.array(g.astype(np.float32))}], start)["w"]
    squares = g * g + 1e-30
    rows, columns = squares.mean(axis=1, keepdims=True), squares.mean(axis=0, keepdims=True)
    step = g / np.sqrt(rows * columns / rows.mean())
    step = step / max(1.0, np.sqrt((step * step).mean()))
    np.testing.assert_allclose(after, w - rate * (step + 0.1 * w), rtol=1e-4, atol=1e-6)


def test_muon_trains_hidden_matrices_at_the_scale_of_adamw():
    config = TrainConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0, **PLAIN)
    grads = gradients(1)
    after = moved(create_optimizer(config), grads)
    step = (PARAMS["fc"]["weight"] - after["fc.weight"]) / 0.1
    # An orthogonal [4, 4] matrix has singular values of 1; five iterations leave them in about [0.68, 1.14].
    values = np.linalg.svd(step / (0.2 * math.sqrt(4)), compute_uv=False)
    assert ((values > 0.6) & (values < 1.2)).all()
    for path in ("embedding.weight", "fc.bias", "norm.weight"):
        first = np.array(dict(ps.tree.items(params()))[path])
        np.testing.assert_allclose(
            first - after[path], 0.1 * np.sign(np.array(dict(ps.tree.items(grads[0]))[path])), rtol=1e-4
        )


def test_muon_trains_the_chosen_matrices_alone():
    config = TrainConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0, **PLAIN)
    after = moved(
        create_optimizer(config, hidden=lambda path, leaf: path == "embedding.weight"), gradients(1)
    )
    sizes = {path: np.abs(np.array(leaf) - after[path]) for path, leaf in ps.tree.items(params())}
    np.testing.assert_allclose(sizes["fc.weight"], 0.1, rtol=1e-4)  # a first step of Adam
    assert np.ptp(sizes["embedding.weight"]) > 0.01


def test_gradients_are_clipped_by_their_global_norm():
    config = TrainConfig(optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, **PLAIN)
    grads = gradients(1)
    norm = math.sqrt(sum((np.array(g, np.float64) ** 2).sum() for g in ps.tree.leaves(grads[0])))
    clipped = moved(create_optimizer(config.replace(max_grad_norm=0.5)), grads)
    free = moved(create_optimizer(config), grads)
    for path, leaf in ps.tree.items(params()):
        start, gradient = np.array(leaf), np.array(dict(ps.tree.items(grads[0]))[path])
        np.testing.assert_allclose(clipped[path], start - 0.5 / norm * gradient, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(free[path], start - gradient, rtol=1e-5, atol=1e-6)


def test_accumulation_averages_the_gradients_and_the_schedule_counts_steps():
    config = TrainConfig(
        optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, max_grad_norm=0.0,
        lr_schedule="linear", warmup_steps=2, max_steps=8, grad_accumulation_steps=2,
    )  # fmt: skip
    grads = gradients(8)
    want = np.array(PARAMS["fc"]["bias"], np.float64)
    for window in range(4):
        pair = [np.array(g["fc"]["bias"], np.float64) for g in grads[2 * window : 2 * window + 2]]
        want = want - formula(config, 2 * window) * sum(pair) / 2
    np.testing.assert_allclose(moved(create_optimizer(config), grads)["fc.bias"], want, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adam", "nadamw", "ademamix", "lion", "adafactor"])
def test_mup_divides_the_steps_of_hidden_matrices_alone_and_not_their_decay(name):
    grads = gradients(2)
    for decay in (0.0, 0.5) if name != "adam" else (0.0,):
        config = TrainConfig(optimizer=name, learning_rate=0.01, weight_decay=decay, **PLAIN)
        usual = moved(create_optimizer(config), grads[:1])
        wide = moved(create_mup_optimizer(config, width_mult=4.0), grads[:1])
        for path, leaf in ps.tree.items(params()):
            start = np.array(leaf)
            shrunk = 0.01 * decay * start if leaf.ndim >= 2 else 0.0
            factor = 4.0 if path == "fc.weight" else 1.0
            step = usual[path] - start + shrunk
            np.testing.assert_allclose(wide[path] - start + shrunk, step / factor, rtol=1e-3, atol=1e-6)
    same = moved(create_mup_optimizer(config, width_mult=1.0), grads)
    for path, leaf in moved(create_optimizer(config), grads).items():
        assert (leaf == same[path]).all()


@pytest.mark.parametrize("name", ["sgd", "muon", "lamb"])
def test_mup_refuses_optimizers_with_other_rules(name):
    with pytest.raises(ValueError, match=r"^create_mup_optimizer: config.optimizer .* adamw, .*muP"):
        create_mup_optimizer(TrainConfig(optimizer=name), width_mult=2.0)
    with pytest.raises(ValueError, match="^create_mup_optimizer: width_mult .* 0, got 0"):
        create_mup_optimizer(TrainConfig(), width_mult=0)


def loss(params, batch, rng):
    """Return the squared error of a linear model."""
    return mx.square(batch["x"] @ params["w"].T - batch["y"]).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_computes_in_the_dtype_and_keeps_float32(dtype):
    seen = []

    def loss_fn(params, batch, rng):
        seen.append(params["w"].dtype)
        return loss(params, batch, rng).astype(mx.float32)

    config = TrainConfig(
        learning_rate=0.05, warmup_steps=0, dtype=dtype, compile_step=False, grad_accumulation_steps=2
    )
    step = create_step(config, loss_fn)
    state = ps.TrainState.create({"w": mx.zeros((1, 3))}, create_optimizer(config), seed=config.seed)
    batch = {"x": mx.array(normal(8, 3)), "y": mx.ones((8, 1))}
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"].item())
    assert set(seen) == {getattr(mx, dtype)}
    assert state.params["w"].dtype == mx.float32
    assert losses[0] == losses[1] > losses[2] == losses[3] > losses[4]
    assert ("loss_scale" in metrics) == (dtype == "float16")


def test_a_step_is_compiled_if_the_configuration_says_so():
    config = TrainConfig()
    assert isinstance(create_step(config, loss), ps.Compiled)
    assert isinstance(create_step(config.replace(compile_step=False), loss), ps.Step)
    for function in (create_schedule, create_optimizer, lambda c: create_step(c, loss)):
        with pytest.raises(TypeError, match=": config .* TrainConfig, got {'seed': 1}"):
            function({"seed": 1})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_step_makes_the_measurements_that_the_configuration_names(dtype):
    names = get_args(MeasureName)
    config = TrainConfig(warmup_steps=0, dtype=dtype, measure=list(names), measure_every=2)
    start = {"w": mx.ones((1, 3))}
    step = create_step(config, lambda *given: loss(*given).astype(mx.float32), reference=start)
    state = ps.TrainState.create(start, create_optimizer(config))
    batch, found = {"x": mx.array(normal(8, 3)), "y": mx.ones((8, 1))}, []
    for number in range(4):
        before = state.params["w"]
        state, metrics = step.at(number)(state, batch)
        found.append(tuple(dict.fromkeys(key.partition("/")[0] for key in metrics if key.startswith(names))))
    assert found == [(), names, (), names]
    assert isinstance(step, ps.Compiled)
    assert step.traces == 2
    assert metrics["drift/w"].item() == pytest.approx(mx.linalg.norm(before - 1).item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"create_step: reference .* 'drift', got None"):
        create_step(config, loss)
