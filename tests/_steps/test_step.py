"""A step and its parts agree bit for bit."""

import inspect

import mlx.core as mx

import purestep as ps
from tests.training import BATCH, DENSE, TRANSFORM, linear_loss, start
from tests.trees import same_bits


def test_the_parts_are_those_of_the_step():
    step, state = ps.train_step(linear_loss, TRANSFORM, microbatches=2), start(params=DENSE)
    made = step.parts(state, BATCH)
    assert same_bits((made.state, made.metrics), step(state, BATCH))
    assert same_bits(ps.apply_updates(state.params, made.updates), made.state.params)
    assert mx.array_equal(ps.tree.norm(made.gradients), made.metrics["grad_norm"])


def test_a_step_of_ones_own_is_called_compiled_and_taken_apart():
    def parts(state, batch):
        return ps.Parts(state.replace(step=state.step + 1), {"loss": batch["x"].sum()}, {}, {})

    step, state = ps.Step(parts), start()
    assert step.parts is parts
    assert [*inspect.signature(step).parameters] == ["state", "batch"]
    for each in (step, ps.compiled(step)):
        new, metrics = each(state=state, batch={"x": mx.ones(3)})
        assert (new.step.item(), metrics["loss"].item()) == (1, 3.0)


def test_every_builder_returns_a_step():
    scaled = ps.transforms.dynamic_loss_scale(TRANSFORM)
    encode = lambda params, batch, rng: batch["x"] @ params["w"]  # noqa: E731
    loss = lambda params, found, batch: mx.square(found).mean()  # noqa: E731
    assert {
        type(ps.train_step(linear_loss, TRANSFORM)),
        type(ps.sam_step(linear_loss, TRANSFORM)),
        type(ps.loss_scaled_step(linear_loss, scaled)),
        type(ps.cached_contrastive_step(encode, loss, TRANSFORM, microbatches=2)),
    } == {ps.Step}
    assert isinstance(ps.compiled(ps.train_step(linear_loss, TRANSFORM)), ps.Compiled)


def test_a_compiled_step_leads_to_its_parts():
    step = ps.train_step(linear_loss, TRANSFORM)
    assert ps.compiled(step).step is step
    assert ps.compiled(step).step.parts is step.parts


def test_the_loss_scale_is_still_in_the_gradients():
    transform = ps.transforms.dynamic_loss_scale(TRANSFORM, init_scale=8.0)
    plain = ps.train_step(linear_loss, TRANSFORM).parts(start(params=DENSE), BATCH)
    scaled = ps.loss_scaled_step(linear_loss, transform).parts(start(transform, DENSE), BATCH)
    for a, b in zip(ps.tree.leaves(plain.gradients), ps.tree.leaves(scaled.gradients), strict=True):
        assert mx.allclose(8.0 * a, b, rtol=1e-5, atol=1e-6)
    assert mx.allclose(plain.metrics["grad_norm"], scaled.metrics["grad_norm"])


def test_sam_shows_the_gradient_of_the_second_place():
    step = ps.sam_step(linear_loss, TRANSFORM, rho=0.5)
    state = start(params=DENSE)
    made = step.parts(state, BATCH)
    assert not mx.allclose(ps.tree.norm(made.gradients), made.metrics["grad_norm"])
    assert same_bits(ps.apply_updates(state.params, made.updates), made.state.params)
