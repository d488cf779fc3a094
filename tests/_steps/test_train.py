"""The training step is a function, is exact over microbatches, and checks its arguments."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import purestep as ps
from tests.refusals import parts
from tests.training import BATCH, DENSE, IGNORED, PARAMS, TRANSFORM, classifier, linear_loss, ragged, start
from tests.trees import Pair, array, same_bits, snapshot


def test_one_step_by_hand():
    def loss_fn(params, batch, rng):
        return mx.square(params["w"] - batch["x"]).mean(), {"double": 2 * params["w"]}

    transform = ps.optimizers.sgd(0.25)
    state = start(transform, {"w": mx.array(1.0)})
    new, metrics = ps.train_step(loss_fn, transform)(state, {"x": mx.array([2.0, 4.0])})
    assert new.params["w"].item() == 2.0  # gradient 2 * (1 - 3) = -4
    assert {name: value.item() for name, value in metrics.items()} == {
        "loss": 5.0,
        "grad_norm": 4.0,
        "learning_rate": 0.25,
        "double": 2.0,
    }
    assert all(value.ndim == 0 and value.dtype == mx.float32 for value in metrics.values())
    assert new.step.item() == 1
    assert new.rng.tolist() != state.rng.tolist()


@given(st.integers(0, 1000))
def test_a_step_is_a_function(seed):
    step, state, batch = ps.train_step(classifier, TRANSFORM), start(seed=seed), ragged(seed)
    before = snapshot(state), snapshot(batch)
    first = step(state, batch)
    second = step(state, batch)
    assert same_bits(first, second)
    assert (snapshot(state), snapshot(batch)) == before
    assert ps.tree.alike(first[0], state)
    assert type(first[0].opt_state[1][0]) is ps.transforms.ScaleByAdamState


@given(st.integers(0, 1000), st.sampled_from([2, 4, 8]))
def test_microbatches_give_the_gradient_of_the_whole_batch(seed, count):
    descend = ps.optimizers.sgd(1.0)
    state, batch = start(descend), ragged(seed)
    whole, whole_metrics = ps.train_step(classifier, descend)(state, batch)
    parts, part_metrics = ps.train_step(classifier, descend, microbatches=count)(state, batch)
    for a, b in zip(ps.tree.leaves(whole.params), ps.tree.leaves(parts.params), strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "mean_logit"):
        assert part_metrics[name].item() == pytest.approx(whole_metrics[name].item(), rel=1e-5, abs=1e-6)


def test_averaging_the_means_of_microbatches_would_be_wrong_on_these_batches():
    # The test above is meaningful only if the parts have different weights.
    state, batch = start(), ragged(3)
    halves = [{name: leaf[i : i + 4] for name, leaf in batch.items()} for i in (0, 4)]
    whole = classifier(state.params, batch, None)[0].value
    means = [classifier(state.params, half, None)[0].value for half in halves]
    assert abs(whole - (means[0] + means[1]) / 2).item() > 1e-3


def test_a_batch_without_a_real_token_changes_nothing_but_by_the_optimizer_itself():
    batch = ragged(0)
    batch["y"] = mx.full(batch["y"].shape, IGNORED)
    for count in (1, 2):
        new, metrics = ps.train_step(classifier, ps.optimizers.sgd(1.0), microbatches=count)(
            start(ps.optimizers.sgd(1.0)), batch
        )
        assert same_bits(new.params, PARAMS)
        assert (metrics["loss"].item(), metrics["grad_norm"].item()) == (0.0, 0.0)


def test_microbatches_of_half_precision_parameters_gather_in_float32():
    seen = []
    probe = ps.GradientTransform(
        lambda params: (), lambda u, s, params=None: (seen.append(u) or ps.tree.zeros_like(u), s)
    )
    params = ps.tree.cast(PARAMS, mx.float16)
    ps.train_step(classifier, probe, microbatches=4)(start(probe, params), ragged(2))
    assert {leaf.dtype for leaf in ps.tree.leaves(seen)} == {mx.float32}
    assert all(mx.isfinite(leaf).all().item() for leaf in ps.tree.leaves(seen))


def test_every_step_and_every_microbatch_draws_from_a_key_of_its_own():
    def loss_fn(params, batch, rng):
        return (params["w"] * batch["x"]).sum(), {"draw": mx.random.uniform(key=rng)}

    transform = ps.optimizers.sgd(0.1)
    state, step = start(transform, {"w": mx.array(1.0)}), ps.train_step(loss_fn, transform)
    draws = []
    for _ in range(3):
        state, metrics = step(state, {"x": mx.ones(4)})
        draws.append(metrics["draw"].item())
    assert len(set(draws)) == 3
    keys = []

    def spy(params, batch, rng):
        keys.append(tuple(rng.tolist()))
        return (params["w"] * batch["x"]).sum()

    ps.train_step(spy, transform, microbatches=4)(state, {"x": mx.ones(4)})
    assert len(set(keys)) == 4


def test_a_stateful_loss_hands_the_model_state_on_from_microbatch_to_microbatch():
    def loss_fn(params, model_state, batch, rng):
        seen = {"sum": model_state["sum"] + batch["x"].sum()}
        return ps.Mean.of(params["w"] * batch["x"]), {"so_far": seen["sum"]}, seen

    transform = ps.optimizers.sgd(0.1)
    for count in (1, 2, 4):
        state = start(transform, {"w": mx.array(1.0)}, model_state={"sum": mx.array(10.0)})
        new, _ = ps.train_step(loss_fn, transform, microbatches=count, stateful=True)(
            state, {"x": mx.array([1.0, 2.0, 3.0, 4.0])}
        )
        assert new.model_state["sum"].item() == 20.0


def test_dropout_and_batch_norm_train_through_the_bridge():
    with ps.rng.scope(mx.random.key(0)):
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm(8), nn.Dropout(0.2), nn.Linear(8, 3))
        apply, params, model_state = ps.functional(module)

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        return ps.losses.cross_entropy(logits, batch["y"]), {}, model_state

    transform = ps.optimizers.adam(0.05)
    state = ps.TrainState.create(params, transform, model_state=model_state)
    step = ps.train_step(loss_fn, transform, stateful=True)
    batch = {"x": array(0, (32, 4), mx.float32), "y": mx.array(np.arange(32) % 3)}
    evaluate = ps.eval_step(loss_fn, stateful=True)
    before = evaluate(state, batch)["loss"].value.item()
    for _ in range(30):
        state, _ = step(state, batch)
        mx.eval(state)
    assert evaluate(state, batch)["loss"].value.item() < before
    assert not same_bits(state.model_state, model_state)


def test_the_transform_is_handed_the_loss_and_its_weight():
    seen = {}

    def update(updates, state, params=None, *, value, weight):
        seen.update(value=value.item(), weight=weight.item())
        return updates, state

    transform = ps.chain(ps.GradientTransform(lambda params: (), update), ps.optimizers.sgd(0.1))
    _, metrics = ps.train_step(classifier, transform)(start(transform), batch := ragged(1))
    assert seen == {"value": metrics["loss"].item(), "weight": (batch["y"] != IGNORED).sum().item()}


def test_nan_parameters_and_targets_out_of_range_give_a_nan_loss():
    step = ps.train_step(classifier, TRANSFORM)
    bad = ragged(0)
    bad["y"][0, 0] = 3
    assert np.isnan(step(start(), bad)[1]["loss"].item())
    assert np.isnan(step(start(), bad)[1]["grad_norm"].item())
    broken = {**PARAMS, "w": PARAMS["w"] * mx.nan}
    assert np.isnan(step(start(params=broken), ragged(0))[1]["loss"].item())


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({}, ValueError, "batch ... one array, got none"),
        (None, ValueError, "batch ... one array, got none"),
        ({**BATCH, "x": BATCH["x"][:0]}, ValueError, "batch.x ... empty, got shape (0, 5, 4)"),
        ({**BATCH, "n": 3}, TypeError, "batch.n ... Python number 3; ... mx.array(3)"),
        ({**BATCH, "n": np.ones(8)}, TypeError, "batch.n ... mx.array, got numpy's ndarray; ... mx.array("),
        ({**BATCH, "n": mx.array(3)}, ValueError, "batch.n ... 0-d: ... microbatches=4"),
        (
            {**BATCH, "y": BATCH["y"][:4]},
            ValueError,
            "first axis, got batch.x 8, batch.y 4",
        ),
        ({k: v[:6] for k, v in BATCH.items()}, ValueError, "batch.x ... divisible by microbatches=4, got 6"),
    ],
)
def test_batches_that_do_not_fit_are_refused_by_path(batch, error, message):
    with pytest.raises(error, match=parts(f"train_step: ... {message}")):
        ps.train_step(classifier, TRANSFORM, microbatches=4)(start(), batch)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda p, b, r: p["w"], ValueError, "loss ... scalar, got shape (4, 3)"),
        (lambda p, b, r: p["w"].sum().reshape(1), ValueError, "loss ... scalar, got shape (1,)"),
        (lambda p, b, r: 1.0, TypeError, r"loss ... 0-d array ... Mean, got a float"),
        (lambda p, b, r: (p["w"].sum(), {}, {}), TypeError, "loss_fn ... (loss, metrics), got a tuple of 3"),
        (lambda p, b, r: (p["w"].sum(), [1]), TypeError, "metrics ... dict of 0-d arrays, got a list"),
        (lambda p, b, r: (p["w"].sum(), {"m": b["x"]}), ValueError, "metric 'm' ... scalar"),
        (
            lambda p, b, r: (p["w"].sum(), {"m": 2.0}),
            TypeError,
            "metric 'm' ... 0-d array ... Mean, got a float",
        ),
        (lambda p, b, r: (p["w"].sum(), {"loss": p["w"].sum()}), ValueError, "metrics ... named loss"),
        (lambda p, b, r: b["x"].sum(), ValueError, "loss ... not depend on ... parameters"),
        (lambda p, b, r: mx.stop_gradient(p["w"]).sum(), ValueError, "loss ... not depend on ... parameters"),
    ],
)
def test_loss_functions_that_cannot_be_minimized_are_refused(loss_fn, error, message):
    for count in (1, 2):
        with pytest.raises(error, match=parts(f"train_step: ... {message}")):
            ps.train_step(loss_fn, TRANSFORM, microbatches=count)(start(), BATCH)


def test_a_loss_that_is_a_parameter_itself_depends_on_it():
    transform = ps.optimizers.sgd(0.5)
    state, _ = ps.train_step(lambda p, b, r: p["w"], transform)(
        start(transform, {"w": mx.array(1.0), "idle": mx.zeros(3)}), {"x": mx.ones(1)}
    )
    assert state.params["w"].item() == 0.5


def test_a_state_that_would_change_is_refused_by_path():
    def shrinking(updates, state, params=None):
        return updates, Pair(state.first[:1], state.second.astype(mx.float16))

    transform = ps.GradientTransform(lambda params: Pair(mx.zeros(2), mx.zeros(1)), shrinking)
    with pytest.raises(
        ValueError, match=r"train_step: .*opt_state\.first .*\(1,\) .*opt_state\.second .*float16"
    ):
        ps.train_step(classifier, transform)(start(transform), BATCH)
    forgetful = ps.GradientTransform(
        lambda params: Pair(mx.zeros(2), None), lambda u, s, params=None: (u, tuple(s))
    )
    with pytest.raises(ValueError, match="train_step: .* opt_state .*tuple in the new .*Pair"):
        ps.train_step(classifier, forgetful)(start(forgetful), BATCH)


def test_a_python_number_in_the_state_is_refused_by_path():
    with pytest.raises(TypeError, match=r"train_step: state\.step .*Python number 3;.* mx\.array\(3\)"):
        ps.train_step(classifier, TRANSFORM)(start().replace(step=3), BATCH)


def test_arguments_are_checked_when_the_step_is_built():
    with pytest.raises(ValueError, match="^train_step: microbatches .* 1, got 0"):
        ps.train_step(classifier, TRANSFORM, microbatches=0)
    with pytest.raises(TypeError, match="^train_step: transform .* GradientTransform, got <function adam"):
        ps.train_step(classifier, ps.optimizers.adam)
    with pytest.raises(TypeError, match="^train_step: loss_fn .* callable, got 3"):
        ps.train_step(3, TRANSFORM)


def test_a_population_of_runs_is_one_vmap():
    states = [start(params=DENSE, seed=seed) for seed in (1, 2)]
    states[1] = states[1].replace(params=ps.tree.map(lambda p: 2 * p, DENSE))
    step, batch = ps.train_step(linear_loss, TRANSFORM), ragged(0)
    together, metrics = mx.vmap(step, in_axes=(0, None))(ps.tree.map(lambda *s: mx.stack(s), *states), batch)
    for index, state in enumerate(states):
        alone, expected = step(state, batch)
        assert metrics["loss"][index].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
        for a, b in zip(ps.tree.leaves(together.params), ps.tree.leaves(alone.params), strict=True):
            assert mx.allclose(a[index], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_the_gradient_of_the_learning_rate_through_several_steps(count):
    transform = ps.optimizers.adam(0.1)
    step, batch = ps.train_step(linear_loss, transform, microbatches=count), ragged(0)
    begin = start(transform, DENSE)

    def after_three_steps(rate):
        adam, scaling = begin.opt_state
        state = begin.replace(opt_state=(adam, scaling._replace(learning_rate=rate)))
        for _ in range(4):
            state, metrics = step(state, batch)
        return metrics["loss"]

    slope = mx.grad(after_three_steps)(mx.array(0.1)).item()
    difference = (after_three_steps(mx.array(0.11)) - after_three_steps(mx.array(0.09))).item() / 0.02
    assert slope == pytest.approx(difference, rel=1e-2)
    assert abs(slope) > 1e-3


def test_a_transform_that_writes_into_its_updates_leaves_the_norm_of_later_clips_right():
    def update(updates, state, params=None):
        updates["w"] = 4 * updates["w"]
        updates["b"][...] = 0.0
        return updates, state

    writing = ps.GradientTransform(lambda params: (), update)
    transform = ps.chain(writing, ps.transforms.clip_by_global_norm(1.0))
    state = ps.TrainState.create({"w": mx.zeros(1), "b": mx.zeros(1)}, transform)
    step = ps.train_step(lambda params, batch, rng: (params["w"] + params["b"]).sum(), transform)
    parts = step.parts(state, mx.zeros(1))
    assert parts.updates["w"].item() == 1.0
    assert parts.gradients["b"].item() == 1.0


def test_a_clip_by_the_global_norm_uses_the_norm_of_the_step(monkeypatch):
    from purestep._core import norms

    calls = []
    real = norms.norm
    monkeypatch.setattr(norms, "norm", lambda tree: calls.append(tree) or real(tree))
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.sgd(0.1))
    state = ps.TrainState.create({"w": mx.zeros(2)}, transform)
    ps.train_step(lambda params, batch, rng: params["w"].sum(), transform)(state, mx.zeros(1))
    assert len(calls) == 1
