"""Losses that are sums of means are exact over ragged parts, each term with its own weight."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import loss_scaled_step

ROWS = 8
generator = np.random.default_rng(0)
X, Y = generator.standard_normal((ROWS, 5)), generator.standard_normal((ROWS, 3))
W = generator.standard_normal((5, 3))
FEW = np.array([1.0, 1, 1, 0, 0, 0, 1, 0])  # ragged in every cut
MANY = generator.integers(0, 4, (ROWS, 3)).astype(float)
BATCH = {name: mx.array(value, mx.float32) for name, value in {"x": X, "y": Y, "f": FEW, "m": MANY}.items()}


def loss_fn(params, batch, rng):
    away = batch["x"] @ params["w"] - batch["y"]
    main = ps.Mean.of(mx.square(away), batch["m"])
    aux = ps.Mean.of(mx.square(away).sum(axis=-1), batch["f"])
    penalty = mx.square(params["w"]).sum()
    return main + 0.3 * aux - penalty / 50 + 2.0, {"both": aux / 2 - main, "aux": aux}


def exact():
    """Return the loss, its gradient and the metrics of the whole batch, in float64."""
    away = X @ W - Y
    main = (MANY * away**2).sum() / MANY.sum()
    aux = (FEW[:, None] * away**2).sum() / FEW.sum()
    slope = 2 * X.T @ (away * (MANY / MANY.sum() + 0.3 * FEW[:, None] / FEW.sum())) - 2 * W / 50
    return main + 0.3 * aux - (W**2).sum() / 50 + 2, slope, {"both": aux / 2 - main, "aux": aux}


def start(transform):
    return ps.TrainState.create({"w": mx.array(W, mx.float32)}, transform)


def check(gradients, metrics, extra=()):
    loss, slope, others = exact()
    np.testing.assert_allclose(metrics["loss"].item(), loss, 1e-6)
    np.testing.assert_allclose(metrics["grad_norm"].item(), np.linalg.norm(slope), 1e-6)
    np.testing.assert_allclose(np.array(gradients["w"]), slope, 1e-5, 1e-6)
    for name, value in others.items():
        np.testing.assert_allclose(metrics[name].item(), value, 1e-6)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_microbatches_give_loss_metrics_and_gradient_of_the_whole(count):
    transform = ps.optimizers.sgd(1.0)
    made = ps.train_step(loss_fn, transform, microbatches=count).parts(start(transform), BATCH)
    check(made.gradients, made.metrics)


def test_compiled_too():
    transform = ps.optimizers.sgd(1.0)
    state, metrics = ps.compiled(ps.train_step(loss_fn, transform, microbatches=4))(start(transform), BATCH)
    check({"w": mx.array(W, mx.float32) - state.params["w"]}, metrics)


def test_the_scaled_step_and_sam():
    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.sgd(1.0), init_scale=1024.0)
    made = loss_scaled_step(loss_fn, transform, microbatches=4).parts(start(transform), BATCH)
    check({"w": made.gradients["w"] / 1024}, made.metrics)

    transform = ps.optimizers.sgd(1.0)
    seen = [ps.sam_step(loss_fn, transform, microbatches=k)(start(transform), BATCH) for k in (1, 4)]
    np.testing.assert_allclose(seen[0][0].params["w"], seen[1][0].params["w"], 1e-5, 1e-6)
    check({"w": mx.array(exact()[1])}, seen[1][1])


def test_a_model_state_and_weights_that_the_model_makes():
    """The weight of the second term is the number of positive outputs, which needs the forward pass."""

    def stateful(params, model_state, batch, rng):
        out = batch["x"] @ params["w"] + model_state["n"]
        loss = ps.Mean.of(mx.square(out)) + 0.1 * ps.Mean.of(mx.abs(out), out > 0)
        return loss, {}, {"n": model_state["n"] + 1}

    transform, parts = ps.optimizers.sgd(1.0), 4
    state = ps.TrainState.create({"w": mx.array(W, mx.float32)}, transform, model_state={"n": mx.array(0.0)})
    made = ps.train_step(stateful, transform, microbatches=parts, stateful=True).parts(state, BATCH)
    out = X @ W + np.repeat(np.arange(parts), ROWS // parts)[:, None]
    mask = (out > 0) / (out > 0).sum()
    np.testing.assert_allclose(made.metrics["loss"].item(), (out**2).mean() + 0.1 * (out * mask).sum(), 1e-6)
    np.testing.assert_allclose(made.gradients["w"], X.T @ (2 * out / out.size + 0.1 * mask), 1e-5, 1e-6)
    assert made.state.model_state["n"].item() == parts


def test_a_gradient_of_half_precision_is_as_exact_as_with_one_mean():
    params = {"w": mx.array(W, mx.float16)}

    def half(params, batch, rng):
        away = (batch["x"].astype(mx.float16) @ params["w"]).astype(mx.float32) * 1e-6
        return ps.Mean.of(away, batch["m"]) + ps.Mean.of(away, batch["f"][:, None])

    transform = ps.optimizers.sgd(1.0)
    found = [
        ps.train_step(half, transform, microbatches=k).parts(ps.TrainState.create(params, transform), BATCH)
        for k in (1, 8)
    ]
    whole, cut = (np.array(made.gradients["w"]).astype(np.float64) for made in found)
    np.testing.assert_allclose(cut, whole, 0.2, 2e-7)


@pytest.mark.parametrize("wrap", [lambda step: step, ps.compiled])
def test_evaluation_merges_term_by_term(wrap):
    def unpenalized(params, batch, rng):
        return loss_fn(params, batch, rng)

    step, state = wrap(ps.eval_step(unpenalized)), start(ps.optimizers.sgd(1.0))
    cuts = [{name: leaf[i : i + 2] for name, leaf in BATCH.items()} for i in range(0, ROWS, 2)]
    found = ps.evaluate(step, state, cuts)
    loss, _, others = exact()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["weight"] == MANY.sum()
    for name, value in others.items():
        assert found[name] == pytest.approx(value, rel=1e-6)
    merged = ps.Mean.merge(*(step(state, cut)["loss"] for cut in cuts))
    assert merged.value.item() == pytest.approx(loss, rel=1e-6)


def test_one_backward_pass_without_microbatches_and_with_one_mean():
    calls = []

    def counted(params, batch, rng):
        calls.append(None)
        return loss_fn(params, batch, rng)[0]

    def plain(params, batch, rng):
        calls.append(None)
        return -2 * ps.Mean.of(batch["x"] @ params["w"]) / 3

    transform = ps.optimizers.sgd(1.0)
    for function, count, expected in ((counted, 1, 1), (plain, 4, 4), (counted, 4, 4 + 4 + 1)):
        calls.clear()
        ps.train_step(function, transform, microbatches=count)(start(transform), BATCH)
        assert len(calls) == expected


def test_sums_of_other_lengths_are_refused():
    seen = []

    def loss(params, batch, rng):
        seen.append(None)
        mean = ps.Mean.of(batch["x"] @ params["w"])
        return mean + ps.Mean.of(batch["f"]) if len(seen) % 2 else mean

    transform = ps.optimizers.sgd(1.0)
    with pytest.raises(ValueError, match=r"^train_step: the loss .* same number .* got 1 and 2"):
        ps.train_step(loss, transform, microbatches=4)(start(transform), BATCH)
    seen.clear()
    step = ps.eval_step(loss)
    with pytest.raises(ValueError, match=r"^evaluate: loss .* got 2 and 1"):
        ps.evaluate(step, start(transform), [BATCH, BATCH])
