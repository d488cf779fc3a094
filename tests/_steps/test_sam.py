"""sam_step: the gradient at the worst point nearby, and the contract of train_step."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import sam_step, tree
from tests.trees import array, same_bits, snapshot

PARAMS = {"w": array(0, (4, 3), mx.float32), "b": array(1, (3,), mx.float32), "unused": None}
BATCH = {"x": array(2, (8, 4), mx.float32), "y": mx.array([0, 1, 2, -100, 0, -100, -100, 1])}
ADAM = ps.optimizers.adam(1e-2)


def loss_fn(params, batch, rng):
    logits = batch["x"] @ params["w"] + params["b"]
    loss = ps.losses.cross_entropy(logits, batch["y"], ignore_index=-100)
    return loss, {"biggest": logits.max()}


def by_hand(params, rho, adaptive):
    """Return the gradient of the perturbed loss, and the two losses."""

    def value(leaves):
        return loss_fn(tree.unflatten(params, leaves), BATCH, None)[0].value

    leaves = tree.leaves(params)
    loss, gradients = mx.value_and_grad(value)(leaves)
    parts = [abs(p) * g if adaptive else g for p, g in zip(leaves, gradients, strict=True)]
    norm = np.sqrt(sum(float(mx.square(part).sum()) for part in parts))
    shifts = [abs(p) * x if adaptive else x for p, x in zip(leaves, parts, strict=True)]
    there = [p + rho * s / norm for p, s in zip(leaves, shifts, strict=True)]
    perturbed, gradients = mx.value_and_grad(value)(there)
    return tree.unflatten(params, gradients), loss.item(), perturbed.item()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("microbatches", [1, 2, 8])
def test_the_update_is_of_the_gradient_at_the_perturbed_parameters(adaptive, microbatches):
    rho = 0.5
    sgd = ps.optimizers.sgd(1.0)
    state = ps.TrainState.create(PARAMS, sgd)
    step = sam_step(loss_fn, sgd, rho=rho, adaptive=adaptive, microbatches=microbatches)
    new, metrics = step(state, BATCH)
    gradients, loss, perturbed = by_hand(PARAMS, rho, adaptive)
    for p, q, g in zip(*map(tree.leaves, (PARAMS, new.params, gradients)), strict=True):
        assert mx.allclose(q, p - g, rtol=1e-5, atol=1e-6)
    assert metrics["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert metrics["perturbed_loss"].item() == pytest.approx(perturbed, rel=1e-5)
    assert perturbed > loss
    assert metrics.keys() == {"loss", "perturbed_loss", "grad_norm", "learning_rate", "biggest"}


def test_a_rho_of_zero_is_train_step():
    state = ps.TrainState.create(PARAMS, ADAM)
    want, want_metrics = ps.train_step(loss_fn, ADAM)(state, BATCH)
    got, metrics = sam_step(loss_fn, ADAM, rho=0.0)(state, BATCH)
    assert same_bits(got, want)
    assert metrics.pop("perturbed_loss").item() == metrics["loss"].item()
    assert {k: v.item() for k, v in metrics.items()} == {k: v.item() for k, v in want_metrics.items()}


def test_a_step_is_a_function_and_keeps_the_state_as_it_is_built():
    state, step = ps.TrainState.create(PARAMS, ADAM, seed=3), sam_step(loss_fn, ADAM)
    before = snapshot(state)
    first = step(state, BATCH)
    assert same_bits(step(state, BATCH), first)
    assert snapshot(state) == before
    assert tree.alike(first[0], state)
    assert first[0].step.item() == 1
    assert first[0].opt_state[0].count.item() == 1


def test_both_gradients_draw_with_one_key():
    keys = []

    def noisy(params, batch, rng):
        keys.append(rng.tolist())
        return mx.square(params["w"] - batch["x"]).mean()

    sgd = ps.optimizers.sgd(0.1)
    sam_step(noisy, sgd)(ps.TrainState.create({"w": mx.array(0.0)}, sgd), {"x": mx.ones(2)})
    assert keys[0] == keys[1]
    assert len(keys) == 2


def test_the_model_state_is_that_of_the_first_pass():
    def stateful(params, model_state, batch, rng):
        loss = mx.square(params["w"] - batch["x"]).mean()
        return loss, {}, {"w": params["w"], "calls": model_state["calls"] + 1}

    sgd = ps.optimizers.sgd(0.1)
    model_state = {"w": mx.array(9.0), "calls": mx.array(0)}
    state = ps.TrainState.create({"w": mx.array(1.0)}, sgd, model_state=model_state)
    new, _ = sam_step(stateful, sgd, rho=0.5, stateful=True)(state, {"x": mx.zeros(2)})
    assert (new.model_state["w"].item(), new.model_state["calls"].item()) == (1.0, 1)
    assert new.params["w"].item() == pytest.approx(1 - 0.1 * 2 * 1.5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_where_the_gradient_is_zero_it_stays(adaptive):
    sgd = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.array(0.0)}, sgd)
    step = sam_step(lambda p, b, r: mx.square(p["w"]).sum(), sgd, adaptive=adaptive)
    assert step(state, {"x": mx.zeros(1)})[0].params["w"].item() == 0.0


def test_what_it_refuses():
    sgd = ps.optimizers.sgd(0.1)
    with pytest.raises(ValueError, match="sam_step: rho .* 0, got -1"):
        sam_step(loss_fn, sgd, rho=-1)
    with pytest.raises(TypeError, match="sam_step: loss_fn .* callable, got 3"):
        sam_step(3, sgd)
    state = ps.TrainState.create(PARAMS, sgd)
    step = sam_step(lambda p, b, r: (p["w"].sum(), {"perturbed_loss": p["w"].sum()}), sgd)
    with pytest.raises(ValueError, match="sam_step: loss_fn's metrics .* named perturbed_loss"):
        step(state, BATCH)


def test_a_compiled_step_whose_loss_splits_its_batch():
    def split(params, batch, rng):
        left, right = mx.split(batch["x"], 2, axis=-1)
        return loss_fn(params, batch, rng)[0].value + (left * right).mean() * params["b"].sum()

    state = ps.TrainState.create(PARAMS, ADAM)
    step = sam_step(split, ADAM, rho=0.1)
    got, want = (each(state, BATCH)[0].params for each in (ps.compiled(step), step))
    assert mx.allclose(got["w"], want["w"], atol=1e-6)
