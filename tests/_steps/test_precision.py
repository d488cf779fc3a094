"""Mixed precision: the model computes in the reduced dtype, masters and gradients stay float32."""

import functools
import math

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps

PARAMS = {"body": {"w": mx.array([0.5, -0.25])}, "router": {"w": mx.array([1.0])}, "count": mx.array(3)}
BATCH = {"x": mx.array([[1.0, 2.0], [3.0, 4.0]]), "y": mx.array([1.0, 2.0]), "ids": mx.array([0, 1])}


def noting(seen):
    def loss_fn(params, batch, rng):
        seen.append({**dict(ps.tree.items(params)), **batch})
        return ps.Mean.of(mx.square((batch["x"] @ params["body"]["w"]).astype(mx.float32) - batch["y"]))

    return loss_fn


def dtypes(seen):
    return {name: leaf.dtype for name, leaf in seen[-1].items()}


def test_what_is_cast_and_what_is_not():
    seen = []
    ps.compute_in(noting(seen), mx.bfloat16, keep="router.*", inputs="x")(PARAMS, BATCH, None)
    assert dtypes(seen) == {
        "body.w": mx.bfloat16,
        "router.w": mx.float32,
        "count": mx.int32,
        "x": mx.bfloat16,
        "y": mx.float32,
        "ids": mx.int32,
    }
    ps.compute_in(noting(seen), mx.float16)(PARAMS, BATCH, None)
    assert dtypes(seen)["x"] == mx.float32
    assert dtypes(seen)["router.w"] == mx.float16


def test_a_step_keeps_float32_masters_and_equals_a_cast_by_hand():
    def loss_fn(params, batch, rng):
        return ps.Mean.of(mx.square((batch["x"] @ params["w"]).astype(mx.float32) - batch["y"]))

    transform = ps.optimizers.adam(0.1)
    state = ps.TrainState.create({"w": mx.array([0.5, -0.25])}, transform)
    step = ps.train_step(ps.compute_in(loss_fn, mx.bfloat16, inputs="x"), transform, microbatches=2)
    small = {**BATCH, "x": BATCH["x"].astype(mx.bfloat16)}
    by_hand = ps.train_step(
        lambda params, batch, rng: loss_fn(ps.tree.cast(params, mx.bfloat16), batch, rng),
        transform,
        microbatches=2,
    )
    got, want = step(state, BATCH), by_hand(state, small)
    for a, b in zip(ps.tree.leaves(got), ps.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert mx.array_equal(a, b)
    assert got[0].params["w"].dtype == got[0].opt_state[0].mu["w"].dtype == mx.float32
    compiled, _ = ps.compiled(step)(state, BATCH)
    assert mx.allclose(compiled.params["w"], got[0].params["w"], rtol=1e-6)


def test_a_model_state_is_not_cast():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, model_state = ps.functional(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm(4)))

    def loss_fn(params, model_state, batch, rng):
        out, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        assert out.dtype == mx.bfloat16
        return ps.Mean.of(mx.square(out.astype(mx.float32))), {}, model_state

    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(ps.compute_in(loss_fn, mx.bfloat16, inputs="x"), transform, stateful=True)
    state, _ = step(ps.TrainState.create(params, transform, model_state=model_state), BATCH)
    assert {leaf.dtype for leaf in ps.tree.leaves(state.params)} == {mx.float32}


def test_float16_with_loss_scaling():
    """The gradient 1e-8 is 0 in float16, and right with a scale."""

    def loss_fn(params, batch, rng):
        return ps.Mean.of((params["w"] * batch["x"]).astype(mx.float32))

    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.sgd(1.0), init_scale=2.0**16)
    state = ps.TrainState.create({"w": mx.array([0.0])}, transform)
    step = ps.loss_scaled_step(ps.compute_in(loss_fn, mx.float16), transform)
    state, _ = step(state, {"x": mx.array([[1e-8]])})
    assert state.params["w"].item() == pytest.approx(-1e-8, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(compiled):
    """A gradient of 512 fits into float16 at a scale of at most 2**6; the values follow by hand."""
    with ps.rng.scope(mx.random.key(0)):
        model = nn.Linear(1, 1, bias=False)
    apply, params, _ = ps.functional(model)
    params = ps.tree.map(mx.zeros_like, params)

    def loss_fn(params, batch, rng):
        return ps.Mean.of(apply(params, batch["x"]).astype(mx.float32))

    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.adam(0.5), init_scale=2.0**8)
    step = ps.loss_scaled_step(ps.compute_in(loss_fn, mx.float16, inputs="x"), transform)
    step = ps.compiled(step) if compiled else step
    state, batch = ps.TrainState.create(params, transform), {"x": mx.array([[512.0]])}
    scales, norms = [], []
    for skips in (1, 2):
        before = state
        state, metrics = step(state, batch)
        scales.append(metrics["loss_scale"].item())
        norms.append(metrics["grad_norm"].item())
        assert mx.array_equal(state.params["weight"], before.params["weight"])
        for a, b in zip(*(ps.tree.leaves(each.opt_state.inner) for each in (state, before)), strict=True):
            assert mx.array_equal(a, b)
        assert state.opt_state.skipped.item() == skips
        assert state.step.item() == skips
    assert scales == [2**8, 2**7]
    assert norms == [math.inf, math.inf]  # the metrics show it
    state, metrics = step(state, batch)
    assert (metrics["loss_scale"].item(), metrics["grad_norm"].item()) == (2**6, 512)
    assert state.params["weight"].item() == pytest.approx(-0.5)  # Adam's first step is its rate
    assert state.params["weight"].dtype == mx.float32


def test_a_loss_that_float16_cannot_hold_shows_in_each_row():
    def loss_fn(params, batch, rng):
        return ps.Mean.of(mx.square((params["w"] * batch["x"]).astype(mx.float32)))

    transform = ps.transforms.dynamic_loss_scale(ps.optimizers.sgd(1.0), init_scale=4.0)
    step = ps.loss_scaled_step(ps.compute_in(loss_fn, mx.float16, inputs="x"), transform)
    first = ps.TrainState.create({"w": mx.array([2.0])}, transform)
    result = ps.fit(step, first, [{"x": mx.array([[40000.0]])}] * 4, steps=4, log_every=1)
    assert not any(math.isfinite(loss) for loss in result.history.column("loss")[1])
    assert result.history.column("loss_scale")[1] == [4, 2, 1, 1]  # 1 is the least
    assert result.state.params["w"].item() == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "rooter.*"}, r"'rooter\.\*' matches none .*body\.w"),
        ({"keep": "*"}, "leave a parameter to cast"),
        ({"inputs": "z"}, "'z' matches none .*x"),
        ({"inputs": "ids"}, r"int32 for batch\.ids"),
    ],
)
def test_patterns_are_checked(options, words):
    with pytest.raises(ValueError, match=f"^compute_in: .*{words}"):
        ps.compute_in(noting([]), mx.bfloat16, **options)(PARAMS, BATCH, None)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="^compute_in: dtype .*int8"):
        ps.compute_in(noting([]), mx.int8)
    with pytest.raises(TypeError, match="^compute_in: loss_fn"):
        ps.compute_in(3, mx.bfloat16)
    with pytest.raises(TypeError, match="^compute_in: .*pattern"):
        ps.compute_in(noting([]), mx.bfloat16, keep=[3])(PARAMS, BATCH, None)


def test_a_wrapper_of_the_loss_function_is_not_passed_over():
    def loss_fn(params, batch, rng):
        return mx.square(params["w"] * batch["x"]).mean().astype(mx.float32)

    cast = ps.compute_in(loss_fn, mx.bfloat16)

    @functools.wraps(cast)
    def doubled(params, batch, rng):
        return 2 * cast(params, batch, rng)

    transform = ps.optimizers.sgd(1.0)
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform)
    batch = {"x": mx.array([1.0])}
    assert ps.train_step(cast, transform)(state, batch)[0].params["w"].item() == -1.0
    assert ps.train_step(doubled, transform)(state, batch)[0].params["w"].item() == -3.0


def test_the_gradients_have_the_dtype_of_the_parameters():
    seen = {}

    def update(updates, state, params=None):
        seen["w"] = updates["w"].dtype
        return updates, state

    transform = ps.GradientTransform(lambda params: (), update)
    loss_fn = ps.compute_in(
        lambda params, batch, rng: (params["w"] * batch).sum().astype(mx.float32), mx.bfloat16
    )
    state = ps.TrainState.create({"w": mx.array(1.0)}, transform)
    parts = ps.train_step(loss_fn, transform).parts(state, mx.array([1.0]))
    assert seen["w"] == parts.gradients["w"].dtype == mx.float32
