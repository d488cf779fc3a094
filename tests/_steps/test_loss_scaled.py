"""loss_scaled_step: train_step with gradients that do not underflow in float16."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import loss_scaled_step, tree
from purestep.transforms import dynamic_loss_scale, loss_scale
from tests.trees import array, same_bits

PARAMS = {"w": array(0, (4, 3), mx.float32), "b": array(1, (3,), mx.float32), "unused": None}
BATCH = {"x": array(2, (8, 4), mx.float32), "y": mx.array([0, 1, 2, -100, 0, -100, -100, 1])}
OPTIMIZER = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-2))


def loss_fn(params, batch, rng):
    noise = mx.random.normal(batch["x"].shape, key=rng)
    logits = (batch["x"] + 0.01 * noise) @ params["w"] + params["b"]
    loss = ps.losses.cross_entropy(logits, batch["y"], ignore_index=-100)
    return loss, {"biggest": logits.max()}


@pytest.mark.parametrize("microbatches", [1, 4])
def test_in_float32_it_is_train_step_to_rounding(microbatches):
    plain = ps.train_step(loss_fn, OPTIMIZER, microbatches=microbatches)
    transform = dynamic_loss_scale(OPTIMIZER)
    scaled = loss_scaled_step(loss_fn, transform, microbatches=microbatches)
    a, b = ps.TrainState.create(PARAMS, OPTIMIZER), ps.TrainState.create(PARAMS, transform)
    for _ in range(3):
        (a, want), (b, got) = plain(a, BATCH), scaled(b, BATCH)
        assert got.pop("loss_scale").item() == 2**15
        assert got.keys() == want.keys()
        for name in want:
            assert got[name].item() == pytest.approx(want[name].item(), rel=1e-5), name
    for x, y in zip(tree.leaves(a.params), tree.leaves(b.params), strict=True):
        assert mx.allclose(x, y, rtol=1e-5, atol=1e-7)
    assert same_bits(a.rng, b.rng)
    assert b.model_state == {}


def test_a_gradient_that_float16_cannot_hold_arrives():
    def small(params, batch, rng):
        return (params["w"].astype(mx.float16) * batch["x"]).sum().astype(mx.float32) * 2.0**-26

    params, batch = {"w": mx.array([1.0])}, {"x": mx.ones(1, mx.float16)}
    sgd = ps.optimizers.sgd(1.0)
    lost, _ = ps.train_step(small, sgd)(ps.TrainState.create(params, sgd), batch)
    assert lost.params["w"].item() == 1.0
    transform = dynamic_loss_scale(ps.chain(sgd, ps.transforms.scale(2.0**10)))
    kept, _ = loss_scaled_step(small, transform)(ps.TrainState.create(params, transform), batch)
    assert kept.params["w"].item() == 1.0 - 2.0**-16


def test_an_overflow_is_skipped_and_the_scale_backs_off_until_it_fits():
    def steep(params, batch, rng):
        return (params["w"].astype(mx.float16) * batch["x"]).sum().astype(mx.float32)

    transform = dynamic_loss_scale(ps.optimizers.sgd(1.0), 2.0**15)
    state = ps.TrainState.create({"w": mx.array([0.0])}, transform)
    step, batch = loss_scaled_step(steep, transform), {"x": mx.full(1, 8.0, mx.float16)}
    moved = []
    for _ in range(4):
        state, metrics = step(state, batch)
        moved.append((state.params["w"].item(), metrics["loss_scale"].item()))
    assert moved == [(0, 2**15), (0, 2**14), (0, 2**13), (-8, 2**12)]
    assert loss_scale(state.opt_state).item() == 2**12
    assert state.step.item() == 4


def test_the_transform_is_told_the_loss_itself():
    seen = []

    def note(updates, state, params=None, *, value):
        seen.append(value.item())
        return updates, state

    transform = dynamic_loss_scale(ps.GradientTransform(lambda params: (), note))
    state = ps.TrainState.create({"w": mx.array(3.0)}, transform)
    loss_scaled_step(lambda params, batch, rng: params["w"] * 2, transform)(state, {"x": mx.zeros(1)})
    assert seen == [6.0]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_stateful_loss_keeps_its_state(microbatches):
    def stateful(params, model_state, batch, rng):
        total = (params["w"] * batch["x"]).sum()
        return total, {}, {"seen": model_state["seen"] + batch["x"].sum()}

    transform = dynamic_loss_scale(ps.optimizers.sgd(1.0))
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform, model_state={"seen": mx.array(1.0)})
    step = loss_scaled_step(stateful, transform, stateful=True, microbatches=microbatches)
    state, _ = step(state, {"x": mx.array([1.0, 3.0])})
    assert state.model_state["seen"].item() == 5.0


def test_what_it_refuses():
    sgd = ps.optimizers.sgd(1.0)
    state, batch = ps.TrainState.create({"w": mx.array(1.0)}, sgd), {"x": mx.zeros(1)}
    with pytest.raises(ValueError, match="loss_scaled_step: state .* one loss_scale.* got 0"):
        loss_scaled_step(lambda params, batch, rng: params["w"], sgd)(state, batch)
    with pytest.raises(TypeError, match="loss_scaled_step: loss_fn .* callable, got 3"):
        loss_scaled_step(3, sgd)
    transform = dynamic_loss_scale(sgd)
    named = loss_scaled_step(lambda p, b, r: (p["w"], {"loss_scale": p["w"]}), transform)
    with pytest.raises(ValueError, match="loss_scaled_step: loss_fn's metrics .* named loss_scale"):
        named(ps.TrainState.create({"w": mx.array(1.0)}, transform), batch)
    wrong = loss_scaled_step(lambda p, b, r: mx.ones(2), transform)
    with pytest.raises(ValueError, match=r"loss_scaled_step: loss_fn's loss .* scalar, got shape \(2,\)"):
        wrong(ps.TrainState.create({"w": mx.array(1.0)}, transform), batch)


def test_an_infinite_loss_is_reported_as_infinite_and_its_step_is_skipped():
    transform = dynamic_loss_scale(ps.optimizers.sgd(0.5), init_scale=8.0)
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform)

    def loss_fn(params, batch, rng):
        return mx.square(params["w"] * batch)

    new, metrics = ps.loss_scaled_step(loss_fn, transform)(state, mx.array(1e30))
    assert metrics["loss"].item() == float("inf")
    assert new.params["w"].item() == 1.0
