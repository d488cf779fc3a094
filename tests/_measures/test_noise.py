"""The noise scale against its closed form on a quadratic, exact over microbatches of different weights."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._core import cuda
from tests._measures.measuring import linear, plain_sums, rows

m = ps.metrics


def quadratic(rows_, microbatches, weights=None):
    """Return the metrics of `mean |p - x|^2 / 2`: the gradient of a row is p - x."""

    def loss_fn(params, batch, rng):
        loss = 0.5 * mx.square(params["p"] - batch["x"]).sum(axis=1)
        return ps.Mean.of(loss, batch.get("weight"))

    transform = ps.optimizers.sgd(0.0)
    state = ps.TrainState.create({"p": mx.array([2.0, -1.0, 0.5])}, transform)
    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=[m.noise_scale()])
    batch = {"x": mx.array(rows_)} | ({} if weights is None else {"weight": mx.array(weights)})
    metrics = step(state, batch)[1]
    return metrics["noise_scale/noise"].item(), metrics["noise_scale/signal"].item()


def test_one_row_a_microbatch_gives_the_sample_covariance():
    """With k = n the estimator is the unbiased sample variance, summed over the coordinates."""
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    noise, signal = quadratic(x, 6)
    gradients = np.array([2.0, -1.0, 0.5]) - x
    trace = np.trace(np.cov(gradients.T))
    assert noise == pytest.approx(trace, rel=1e-5)
    assert signal == pytest.approx(np.sum(gradients.mean(0) ** 2) - trace / 6, rel=1e-4)


def test_the_average_over_many_batches_is_the_closed_form():
    """For x ~ N(0, s^2) in three dimensions, trace(S) = 3 s^2 and |G|^2 = |p|^2; it is not std / mean."""
    random, average = np.random.default_rng(1), m.NoiseScale(decay=0.999)
    for _ in range(300):
        noise, signal = quadratic(random.normal(scale=2.0, size=(16, 3)).astype(np.float32), 4)
        average = average.add({"noise_scale/noise": noise, "noise_scale/signal": signal})
    assert average.value == pytest.approx(3 * 4.0 / 5.25, rel=0.1)


def test_a_microbatch_counts_by_its_weight():
    """Weighted microbatches: A is the weighted mean of the squared norms, B that of the whole gradient."""
    x = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    weights = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    noise, signal = quadratic(x, 2, weights)
    gradients = np.array([2.0, -1.0, 0.5]) - x
    first, second = gradients[:2].mean(0), gradients[2]
    small = (2 * first @ first + second @ second) / 3
    whole = np.sum((gradients[:3].mean(0)) ** 2)
    assert noise == pytest.approx(4 * (small - whole), rel=1e-4)
    assert signal == pytest.approx(2 * whole - small, rel=1e-4)


WEIGHTS = np.array([2.0, 1.0, 1.0, 3.0, 1.0, 2.0, 0.0, 0.0], np.float32)


@pytest.mark.parametrize("empty", [0, 2, 3])
def test_a_microbatch_without_weight_does_not_count(empty):
    """With one of four empty, the numbers are those of the other three alone."""
    x = np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)
    order = np.roll(np.arange(8).reshape(4, 2), empty + 1, axis=0).reshape(-1)
    found = quadratic(x[order], 4, WEIGHTS[order])
    wanted = quadratic(x[:6], 3, WEIGHTS[:6])
    assert found == pytest.approx(wanted, rel=1e-5)
    gradients = np.array([2.0, -1.0, 0.5]) - x[:6]
    parts = [np.average(gradients[i : i + 2], axis=0, weights=WEIGHTS[i : i + 2]) for i in (0, 2, 4)]
    weights = WEIGHTS[:6].reshape(3, 2).sum(1)
    small, large = np.average([g @ g for g in parts], weights=weights), np.average(parts, 0, weights)
    assert found[1] == pytest.approx((3 * large @ large - small) / 2, rel=1e-4)


def test_the_kernels_of_cuda_measure_the_same(monkeypatch):
    """They read the sums of gradients over the microbatches; plain operations play them here."""
    x = np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)
    want = [quadratic(x, 4), quadratic(x, 4, WEIGHTS), quadratic(x, 4, WEIGHTS[::-1].copy())]
    monkeypatch.setattr(cuda, "serves", lambda arrays: len(arrays) > 0)
    monkeypatch.setattr(cuda, "sums", plain_sums)
    found = [quadratic(x, 4), quadratic(x, 4, WEIGHTS), quadratic(x, 4, WEIGHTS[::-1].copy())]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("weighted", [0, 1])
def test_fewer_than_two_microbatches_with_weight_give_nan(weighted):
    x = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
    assert np.isnan(quadratic(x, 4, np.array([0.7] * weighted + [0.0] * (4 - weighted), np.float32))).all()


def test_an_empty_microbatch_does_not_count_in_a_sum_of_means_either():
    def loss_fn(params, batch, rng):
        errors = mx.square(batch["x"] @ params["w"] - batch["y"])
        return ps.Mean.of(errors, batch["weight"]) + 0.1 * ps.Mean.of(mx.abs(errors), 2 * batch["weight"])

    batch = {**rows(8), "weight": mx.array([1.0] * 6 + [0.0] * 2)}
    found = []
    for count, cut in ((4, batch), (3, {key: value[:6] for key, value in batch.items()})):
        step, state = linear([m.noise_scale()], microbatches=count, loss=loss_fn)
        metrics = step(state, cut)[1]
        found.append([metrics[f"noise_scale/{key}"].item() for key in ("noise", "signal")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_sum_of_means_is_measured_too():
    def loss_fn(params, batch, rng):
        fit = ps.Mean.of(mx.square(batch["x"] @ params["w"] - batch["y"]))
        return fit + 0.1 * ps.Mean.of(mx.square(params["w"]))

    step, state = linear([m.noise_scale()], microbatches=2, loss=loss_fn)
    parts = step.parts(state, rows())
    halves = [ps.train_step(loss_fn, ps.optimizers.sgd(0.1)).parts(state, cut) for cut in cuts(rows(), 2)]
    small = np.mean([ps.tree.norm(half.gradients).item() ** 2 for half in halves])
    large = ps.tree.norm(parts.gradients).item() ** 2
    assert parts.metrics["noise_scale/noise"].item() == pytest.approx(4 * (small - large), rel=1e-4)


def cuts(batch, count):
    size = batch["x"].shape[0] // count
    return [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(count)]


def test_one_microbatch_is_refused_when_the_step_is_built():
    with pytest.raises(
        ValueError, match="microbatches must be at least 2 for the measurement 'noise_scale', got 1"
    ):
        linear([m.noise_scale()])


def test_averages_are_values_and_skip_what_is_missing_or_broken():
    row = {"noise_scale/noise": 4.0, "noise_scale/signal": 2.0}
    average = m.NoiseScale()
    first = average.add(row)
    assert average == m.NoiseScale()
    assert first.value == 2.0
    assert first.add({}) is first
    assert first.add({**row, "noise_scale/noise": float("nan")}) is first
    assert m.NoiseScale().value == float("inf")
    with pytest.raises(ValueError, match="decay must be less than 1"):
        m.NoiseScale(decay=1.0).add(row)
