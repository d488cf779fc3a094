"""Defects of the system that purestep replaces, by row of its table; each test shows one done right."""

import warnings

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps

m, hardware = ps.metrics, ps.hardware


# 12: the peak of a chip. One architecture labelled two chips.


def test_row_12_one_architecture_is_several_chips_with_a_peak_each(monkeypatch):
    """M1 and M1 Pro report one architecture: the name and the number of cores decide."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    found = []
    for name, cores, clock in [
        ("M1", 7, 1.278),
        ("M1", 8, 1.278),
        ("M1 Pro", 14, 1.296),
        ("M1 Pro", 16, 1.296),
    ]:
        info = {"device_name": f"Apple {name}", "architecture": "applegpu_g13g"}
        monkeypatch.setattr(mx, "device_info", lambda *given, info=info: info)
        monkeypatch.setattr("purestep._hardware.lookup.gpu_cores", lambda cores=cores: cores)
        found.append(hardware.peak_flops(mx.float32))
        # By hand: cores * 128 units * 2 operations * clock.
        assert found[-1] == pytest.approx(cores * 128 * 2 * clock * 1e9)
    assert len(set(found)) == 4


@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["", "applegpu_g13g", "Apple M99", "Apple M1 Max", "NVIDIA H999", "M1"])
def test_row_12_what_is_not_known_is_none_and_never_a_guess(name, dtype):
    """`Apple M1 Max` was sold with 24 and with 32 cores, so the name alone says nothing."""
    assert hardware.peak_flops(dtype, name) is None


def test_row_12_every_peak_has_a_source_and_a_cpu_has_no_peak(monkeypatch):
    assert all(chip.source for chip in hardware.chips())
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert hardware.peak_flops(mx.float32) is None


# 13: measurements. Layers were in the order of strings, the "noise scale" was std / mean, and a second
# backward pass computed what the step already had.


class Deep(nn.Module):
    def __init__(self, layers=12, width=4):
        super().__init__()
        self.layers = [nn.Linear(width, width) for _ in range(layers)]

    def __call__(self, x):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x


def deep(measure, *, microbatches=2):
    """Return `(step, state, batch, calls)` of a network of twelve layers; `calls` grows with each loss."""
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(Deep())
    calls, transform = [], ps.optimizers.adamw(1e-3)

    def loss_fn(params, batch, rng):
        calls.append(1)
        return ps.Mean.of(mx.square(apply(params, batch["x"]) - 1))

    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=measure)
    batch = {"x": mx.random.normal((8, 4), key=mx.random.key(1))}
    return step, ps.TrainState.create(params, transform), batch, calls


def test_row_13_layers_are_in_natural_order():
    step, state, batch, _ = deep([m.grad_norms(), m.activations("layers.*")])
    metrics = step(state, batch)[1]
    layers = [f"layers.{number}" for number in range(12)]
    assert [name for name in metrics if name.startswith("grad_norms/")] == [f"grad_norms/{x}" for x in layers]
    norms = [name for name in metrics if name.endswith("/norm")]
    assert norms == [f"activations/{x}/norm" for x in layers]
    assert sorted(layers) != layers  # the order of strings is another one


def test_row_13_the_noise_scale_is_trace_over_squared_gradient_and_not_std_over_mean():
    """For rows x ~ N(mu, s^2) in three dimensions and the loss |p - x|^2 / 2 at p = 0: 3 s^2 / |mu|^2."""
    mu, s, random = np.array([1.0, -2.0, 0.5]), 2.0, np.random.default_rng(0)

    def loss_fn(params, batch, rng):
        return ps.Mean.of(0.5 * mx.square(params["p"] - batch).sum(axis=1))

    transform = ps.optimizers.sgd(0.0)
    state = ps.TrainState.create({"p": mx.zeros(3)}, transform)
    step = ps.train_step(loss_fn, transform, microbatches=4, measure=[m.noise_scale()])
    average, losses = m.NoiseScale(decay=0.999), []
    for _ in range(300):
        batch = mx.array(random.normal(mu, s, size=(16, 3)).astype(np.float32))
        metrics = step(state, batch)[1]
        average = average.add(metrics)
        losses.append(metrics["loss"].item())
    assert average.value == pytest.approx(3 * s**2 / (mu @ mu), rel=0.1)
    assert np.std(losses) / np.mean(losses) < 0.5  # what the replaced system called the noise scale


def test_row_13_there_is_no_second_forward_or_backward_pass():
    """The loss function is called as often, and the graph has the same products, as without measurements."""
    plain, state, batch, calls = deep([])
    flops = m.step_flops(plain, state, batch)
    calls.clear()
    plain(state, batch)
    once = len(calls)
    measure = [
        m.grad_norms(), m.weight_norms(), m.drift(state.params), m.update_ratios(), m.nonfinite_share(),
        m.zero_share("updates"), m.noise_scale(), m.activations("*"),
    ]  # fmt: skip
    measured, state, batch, calls = deep(measure)
    assert m.step_flops(measured, state, batch) == flops > 0
    calls.clear()
    measured(state, batch)
    assert len(calls) == once == 2  # one for each microbatch


def test_row_13_weight_norm_drift_gain_sparsity_entropy_and_rank_are_numpys():
    _, state, batch, _ = deep([], microbatches=1)
    start = ps.tree.map(lambda x: 0.9 * x, state.params)
    measure = [m.weight_norms(), m.drift(start), m.activations(["layers.0", ""])]
    measured, _, _, _ = deep(measure, microbatches=1)
    metrics = {name: value.item() for name, value in measured(state, batch)[1].items()}
    layer = {name: np.asarray(x, np.float64) for name, x in state.params["layers"][0].items()}
    norm = np.sqrt(sum(np.sum(x**2) for x in layer.values()))
    assert metrics["weight_norms/layers.0"] == pytest.approx(norm, rel=1e-5)
    assert metrics["drift/layers.0"] == pytest.approx(0.1 * norm, rel=1e-4)
    x = np.asarray(batch["x"], np.float64)
    out = x @ layer["weight"].T + layer["bias"]
    gain = np.linalg.norm(out, axis=1).sum() / np.linalg.norm(x, axis=1).sum()
    assert metrics["activations/layers.0/gain"] == pytest.approx(gain, rel=1e-5)
    for each in state.params["layers"]:
        x = np.maximum(x @ np.asarray(each["weight"], np.float64).T + np.asarray(each["bias"]), 0)
    assert metrics["activations/sparsity"] == pytest.approx(np.mean(np.abs(x) <= 1e-3))  # eps 1e-3
    keys = mx.zeros((1, 2, 4, 3))
    assert m.head_entropies(keys, keys, scale=1.0).tolist() == pytest.approx(np.full((1, 2, 4), np.log(4)))
    shares = (values := np.linalg.svd(layer["weight"], compute_uv=False)) / values.sum()
    rank = m.effective_rank(state.params["layers"][0]["weight"]).item()
    assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


# 24: the memory monitor.


def test_row_24_memory_is_active_peak_available_and_per_cent_of_a_budget(monkeypatch):
    monkeypatch.setattr(mx, "get_active_memory", lambda: 6 * 10**9)
    monkeypatch.setattr(mx, "get_peak_memory", lambda: 18 * 10**9)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 10**9)
    rows, monitor = [], ps.callbacks.memory(budget=24e9)
    monkeypatch.setattr(monitor, "on_train_begin", lambda run: None)  # the peak is that of the run
    step, state, batch, _ = deep([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 75 % is no reason for a warning
        ps.fit(
            step, state, [batch], steps=2, log_every=1,
            callbacks=[monitor, lambda progress: rows.append(progress.row)],
        )  # fmt: skip
    expected = {
        "memory_active_gb": 6.0,
        "memory_peak_gb": 18.0,
        "memory_cache_gb": 1.0,
        "memory_available_gb": 18.0,
        "memory_percent": 75.0,
    }
    assert [{name: row[name] for name in expected} for row in rows] == [pytest.approx(expected)] * 2


# 25: gradient health. Every tensor was a wait for the device.


def broken(measure):
    """Return `(step, state, source)`: in the sixth batch the gradient of `layers.3.weight` is NaN."""
    transform = ps.optimizers.sgd(1e-3)
    params = {"layers": [{"weight": mx.ones(2), "bias": mx.ones(2)} for _ in range(20)]}

    def loss_fn(params, batch, rng):
        parts = [(batch["x"] * layer["weight"]).sum() + layer["bias"].sum() for layer in params["layers"]]
        parts[3] = parts[3] + (batch["bad"] * params["layers"][3]["weight"]).sum()
        return sum(parts, mx.array(0.0))

    batches = [
        {"x": mx.ones(2), "bad": mx.full((2,), mx.nan if number == 5 else 0.0)} for number in range(20)
    ]
    step = ps.train_step(loss_fn, transform, measure=measure)
    return step, ps.TrainState.create(params, transform), batches


def evaluations(monkeypatch, measure, callbacks):
    """Return how often a run of 20 steps with a row every 4 waits for the device by `mx.eval`."""
    step, state, batches = broken(measure)
    batches[5] = batches[4]  # sound
    waits, evaluate = [], mx.eval
    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", lambda *trees: (waits.append(1), evaluate(*trees))[1])
        ps.fit(step, state, batches, steps=20, log_every=4, prefetch=0, callbacks=callbacks)
    return len(waits)


@pytest.mark.parametrize("measured", [True, False])
def test_row_25_a_nan_is_named_by_its_path(measured):
    measure = [m.grad_norms(by=str)] if measured else []
    step, state, batches = broken(measure)
    with pytest.warns(ps.callbacks.GradientWarning, match=r"of layers\.3\.weight has a NaN"):
        result = ps.fit(
            step, state, batches, steps=20, log_every=4, stop_on_nonfinite=False,
            callbacks=[ps.callbacks.gradient_health(stop=True)],
        )  # fmt: skip
    assert result.reason == "the gradient of layers.3.weight has a NaN or an infinity at step 8"
    bad = step.parts(state, batches[5]).gradients
    assert m.nonfinite_paths(bad) == ["layers.3.weight"]


def test_row_25_one_check_a_row_however_many_tensors(monkeypatch):
    """There are 40 tensors and 5 rows; with the metrics of the step, the check waits for nothing."""
    norms = [m.grad_norms(by=str)]
    plain = evaluations(monkeypatch, [], [])
    assert evaluations(monkeypatch, [], [ps.callbacks.gradient_health()]) - plain == 5
    before = evaluations(monkeypatch, norms, [])
    assert evaluations(monkeypatch, norms, [ps.callbacks.gradient_health()]) == before
