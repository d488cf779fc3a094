"""A step is a function of the state and the batch: it uses no global stream and changes no argument."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from tests.refusals import parts
from tests.trees import same_bits, snapshot

SGD = ps.optimizers.sgd(0.1)
BATCH = {"x": mx.arange(8.0).reshape(4, 2), "n": mx.arange(4)}


def noisy(params, batch, rng):
    return mx.square(params["w"] * batch["x"] + mx.random.normal(batch["x"].shape)).mean()


def quiet(params, batch, rng):
    return mx.square(params["w"] * batch["x"] - 1).mean()


def start(transform=SGD, seed=0, **more):
    return ps.TrainState.create({"w": mx.ones(2)}, transform, seed=seed, **more)


BUILDERS = {
    "train_step": lambda loss_fn, **more: ps.train_step(loss_fn, SGD, **more),
    "sam_step": lambda loss_fn, **more: ps.sam_step(loss_fn, SGD, **more),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_what_a_loss_draws_without_a_key_is_a_function_of_the_state(build, microbatches):
    step, seen = build(noisy, microbatches=microbatches), []
    for seed in (1, 2):
        mx.random.seed(seed)
        seen.append(step(start(), BATCH))
    mx.random.seed(1)
    assert same_bits(*seen)
    state, metrics = seen[0]
    assert step(state, BATCH)[1]["loss"].item() != metrics["loss"].item()
    assert step(start(seed=5), BATCH)[1]["loss"].item() != metrics["loss"].item()


def test_compiled_it_draws_anew_in_every_step():
    step, state, losses = ps.compiled(ps.train_step(noisy, SGD)), start(), set()
    eager = start()
    for _ in range(3):
        state, metrics = step(state, BATCH)
        eager, same = ps.train_step(noisy, SGD)(eager, BATCH)
        losses.add(metrics["loss"].item())
        assert metrics["loss"].item() == pytest.approx(same["loss"].item(), rel=1e-5)
    assert len(losses) == 3


def test_it_is_independent_of_the_key_that_is_handed_over():
    def both(params, batch, rng):
        keyed, keyless = mx.random.normal((2000,), key=rng), mx.random.normal((2000,))
        return quiet(params, batch, rng), {"correlation": (keyed * keyless).mean()}

    _, metrics = ps.train_step(both, SGD)(start(), BATCH)
    assert abs(metrics["correlation"].item()) < 0.1


def test_a_transform_that_draws_without_a_key_is_a_function_of_the_state():
    def update(updates, state, params=None):
        return ps.tree.map(lambda u: u + mx.random.normal(u.shape), updates), state

    transform = ps.GradientTransform(lambda params: (), update)
    step = ps.train_step(quiet, transform)
    assert same_bits(step(start(transform), BATCH), step(start(transform), BATCH))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_transform_and_a_loss_do_not_draw_the_same(microbatches):
    def loss(params, batch, rng):
        return quiet(params, batch, rng), {"drawn": mx.random.normal(())}

    def update(updates, state, params=None):
        return {"w": mx.broadcast_to(mx.random.normal(()), (2,))}, state

    transform = ps.GradientTransform(lambda params: (), update)
    made = ps.train_step(loss, transform, microbatches=microbatches).parts(start(transform), BATCH)
    assert made.metrics["drawn"].item() != made.updates["w"][0].item()


def drawing_init():
    def update(updates, state, params=None):
        return ps.tree.map(mx.multiply, updates, state), state

    return ps.GradientTransform(
        lambda params: ps.tree.map(lambda p: mx.random.normal(p.shape), params), update
    )


def test_a_transform_whose_first_state_is_drawn_is_a_function_of_the_key():
    transform = drawing_init()
    states = [start(transform, seed=seed) for seed in (0, 0, 1)]
    assert same_bits(states[0], states[1])
    assert not same_bits(states[0].opt_state, states[2].opt_state)
    before = mx.random.state[0].tolist()
    ps.train_step(quiet, transform)(states[0], BATCH)
    start(transform)
    assert mx.random.state[0].tolist() == before


def test_a_transform_whose_first_state_is_drawn_can_be_compiled():
    transform = drawing_init()
    step = ps.train_step(quiet, transform)
    state = start(transform)
    got, want = ps.compiled(step)(state, BATCH)[0], step(state, BATCH)[0]
    assert mx.allclose(got.params["w"], want.params["w"], rtol=1e-5)


def test_an_init_that_writes_into_the_params_changes_nothing_outside():
    def init(params):
        params["w"][:] = 0.0
        params["more"] = mx.zeros(1)
        return ()

    transform = ps.GradientTransform(init, lambda updates, state, params=None: (updates, state))
    params = {"w": mx.ones(2)}
    state = ps.TrainState.create(params, transform)
    ps.train_step(quiet, transform)(state, BATCH)
    assert params["w"].tolist() == [1.0, 1.0]
    assert list(state.params) == ["w"]


def test_what_sam_draws_is_the_same_in_both_passes():
    metrics = ps.sam_step(noisy, SGD, rho=0.0)(start(), BATCH)[1]
    assert metrics["loss"].item() == metrics["perturbed_loss"].item()


def test_evaluation_refuses_to_draw_without_a_key():
    with pytest.raises(ValueError, match="^eval_step: loss_fn: random numbers .*without a key: pass rng= "):
        ps.eval_step(noisy)(start(), BATCH)


def test_evaluation_draws_from_a_key_or_from_the_states():
    def keyed(params, batch, rng):
        return ps.Mean.of(mx.random.normal((3,), key=rng) * params["w"][0])

    by_key = ps.eval_step(keyed, rng=mx.random.key(3))
    by_state = ps.eval_step(keyed, rng="state")
    assert same_bits(by_key(start(), BATCH), by_key(start(seed=1), BATCH))
    assert same_bits(by_state(start(), BATCH), by_state(start(), BATCH))
    assert not same_bits(by_state(start(), BATCH), by_state(start(seed=1), BATCH))
    with pytest.raises(ValueError, match="eval_step: rng .* state, got 'stat'"):
        ps.eval_step(keyed, rng="stat")


@pytest.mark.parametrize("rng", ["state", mx.random.key(3)], ids=["state", "key"])
def test_what_an_evaluation_draws_without_a_key_is_independent_of_the_key(rng):
    def both(params, batch, rng):
        keyless = mx.random.normal((2000,))
        keyed = [mx.random.normal((2000,), key=key) for key in (rng, *mx.random.split(rng))]
        return quiet(params, batch, rng), {str(i): (keyless * k).mean() for i, k in enumerate(keyed)}

    step = ps.eval_step(both, rng=rng)
    metrics = step(start(), BATCH)
    for name in "012":
        assert abs(metrics[name].value.item()) < 0.1
    assert same_bits(metrics, step(start(), BATCH))


def test_a_loss_that_writes_into_its_key_changes_no_other():
    def writes(params, batch, rng):
        drawn = mx.random.normal((), key=rng)
        rng[:] = 0
        return quiet(params, batch, rng) + drawn

    key = mx.random.key(3)
    ps.eval_step(writes, rng=key)(start(), BATCH)
    assert key.tolist() == [0, 3]


def test_a_loss_that_writes_into_what_it_is_given_changes_nothing_outside():
    def writes(params, model_state, batch, rng):
        x = batch.pop("x")
        x[0] = 7.0
        batch["n"][:] = 0
        model_state["seen"] = mx.zeros(3)
        model_state["mean"][:] = 5.0
        params["w"][0] = params["w"][0] * 2
        del model_state["seen"]
        return mx.square(params["w"] * x).mean(), {}, model_state

    state = start(model_state={"mean": mx.zeros(2)})
    batch = {"x": mx.ones((4, 2)), "n": mx.arange(4)}
    before = snapshot((state, batch))
    for step in (
        ps.train_step(writes, SGD, stateful=True),
        ps.sam_step(writes, SGD, stateful=True),
        ps.eval_step(writes, stateful=True),
    ):
        step(state, batch)
        assert snapshot((state, batch)) == before
        assert list(batch) == ["x", "n"]


def test_a_transform_that_writes_into_what_it_is_given_changes_nothing_outside():
    def update(updates, state, params=None, grad_norm=None):
        updates["w"][:] = 1.0
        state["count"][...] = 9
        params["w"][:] = 0.0
        grad_norm[...] = 0.0
        return updates, state

    transform = ps.GradientTransform(lambda params: {"count": mx.array(0)}, update)
    state = start(transform)
    before = snapshot(state)
    step = ps.train_step(quiet, transform)
    made = step.parts(state, BATCH)
    assert snapshot(state) == before
    assert made.metrics["grad_norm"].item() > 0
    assert not mx.array_equal(made.gradients["w"], mx.ones(2))
    assert mx.array_equal(made.state.params["w"], mx.full(2, 2.0))


def test_a_forgotten_key_is_refused_where_it_matters():
    class Net(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.linear, self.dropout = nn.Linear(2, 2), nn.Dropout(rate)

        def __call__(self, x):
            return self.dropout(self.linear(x))

    def made(rate):
        with ps.rng.scope(mx.random.key(0)):
            return ps.functional(Net(rate))

    apply, params, _ = made(0.5)
    state = ps.TrainState.create(params, SGD)

    def loss(call):
        return lambda p, b, rng: mx.square(call(p, b["x"], rng)).mean()

    forgot = ps.train_step(loss(lambda p, x, rng: apply(p, x)), SGD)
    for step in (forgot, ps.compiled(forgot)):
        with pytest.raises(ValueError, match=r"apply: .*rng=.*train=False"):
            step(state, BATCH)
    ps.train_step(loss(lambda p, x, rng: apply(p, x, train=False)), SGD)(state, BATCH)
    ps.train_step(loss(lambda p, x, rng: apply(p, x, rng=rng)), SGD)(state, BATCH)
    ps.eval_step(loss(lambda p, x, rng: apply(p, x)))(state, BATCH)

    # A reference is not trained, so it needs no key; nor does a module without layers that depend on the
    # mode.
    def reference(p, x, rng):
        return apply(p, x, rng=rng) - apply(params, x)

    start = ps.TrainState.create(ps.tree.map(lambda p: p + 1, params), SGD)
    ps.train_step(loss(reference), SGD)(start, BATCH)
    plain, params, _ = made(0.0)
    ps.train_step(loss(lambda p, x, rng: plain(p, x)), SGD)(ps.TrainState.create(params, SGD), BATCH)


ADAM = ps.optimizers.adam(0.1)
SCALED = ps.transforms.dynamic_loss_scale(SGD)


def never(params, batch, rng):
    pytest.fail("the loss function was called")


def complex_metric(params, batch, rng):
    return quiet(params, batch, rng), {"c": mx.array(1j)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ps.train_step(quiet, SGD)(start(ADAM), BATCH), ValueError, "train_step: state.opt_state"),
        (lambda: ps.sam_step(never, SGD)(start(ADAM), BATCH), ValueError, "sam_step: state.opt_state"),
        (
            lambda: ps.loss_scaled_step(never, SGD)(start(), BATCH),
            ValueError,
            "loss_scaled_step: state ... one loss_scale, ... got 0",
        ),
        (
            lambda: ps.loss_scaled_step(never, SCALED)(start(), BATCH),
            ValueError,
            "loss_scaled_step: state.opt_state",
        ),
        (
            lambda: ps.train_step(complex_metric, SGD)(start(), BATCH),
            TypeError,
            "train_step: ... metric 'c' ... complex64",
        ),
        (
            lambda: ps.train_step(quiet, SGD)(None, BATCH),
            TypeError,
            "train_step: state ... TrainState, ... None",
        ),
        (
            lambda: ps.train_step(quiet, SGD)(BATCH, start()),
            TypeError,
            "train_step: state ... dict; ... swapped?",
        ),
        (lambda: ps.eval_step(quiet)(BATCH, start()), TypeError, "eval_step: state ... swapped?"),
        (
            lambda: ps.TrainState.create(nn.ReLU(), SGD),
            TypeError,
            "TrainState.create: params ... purestep.functional(module)",
        ),
        (
            lambda: ps.TrainState.create({"w": np.ones(2)}, SGD),
            TypeError,
            "TrainState.create: params.w ... got numpy's ndarray",
        ),
        (
            lambda: ps.train_step(quiet, SGD)(start(), np.ones(2)),
            TypeError,
            "train_step: batch ... mx.array, got numpy's",
        ),
        (
            lambda: ps.TrainState.create({"w": mx.ones(2)}, SGD, seed=-1),
            ValueError,
            "TrainState.create: seed ... 0, got -1",
        ),
        (
            lambda: ps.TrainState.create({"w": mx.ones(2)}, SGD, seed=2**64),
            ValueError,
            "TrainState.create: seed ... 2**64",
        ),
        (lambda: ps.rng.fold_in(mx.random.key(0), 2**32), ValueError, "rng.fold_in: number ... 2**32, got"),
        (
            lambda: ps.train_step(lambda p, m, b, r: 0, SGD),
            TypeError,
            "train_step: loss_fn ... (params, batch, rng), ... stateful=True",
        ),
        (
            lambda: ps.train_step(quiet, SGD, stateful=True),
            TypeError,
            "train_step: loss_fn ... stateful=False",
        ),
        (lambda: ps.eval_step(lambda p: 0), TypeError, "eval_step: loss_fn ... got <lambda>(p)"),
        (
            lambda: ps.train_step(lambda p, b, r: (p["w"] > 0).any(), SGD)(start(), BATCH),
            TypeError,
            "train_step: loss_fn's loss ... floating, got bool",
        ),
        (
            lambda: ps.sam_step(lambda p, b, r: p["w"].sum().astype(mx.int32), SGD)(start(), BATCH),
            TypeError,
            "sam_step: loss_fn's loss ... floating, got int32",
        ),
        (
            lambda: ps.sam_step(lambda p, b, r: mx.array(1.0), SGD)(start(), BATCH),
            ValueError,
            "sam_step: the loss ... not depend",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_the_name_of_what_was_called(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call()


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_microbatches_can_be_vmapped_and_differentiated(microbatches):
    step = ps.train_step(quiet, SGD, microbatches=microbatches)
    members = [start(seed=i).replace(params={"w": mx.full(2, i + 1.0)}) for i in range(3)]
    stacked = ps.tree.map(lambda *leaves: mx.stack(leaves), *members)
    together, _ = mx.vmap(step, in_axes=(0, None))(stacked, BATCH)
    for index, member in enumerate(members):
        assert mx.allclose(together.params["w"][index], step(member, BATCH)[0].params["w"])

    def after(w):
        return step(start().replace(params={"w": w}), BATCH)[0].params["w"].sum()

    # w - 0.1 * d/dw of the mean over 8 numbers of (w x - 1)^2, so its slope is 1 - 0.1 * sum(x^2) / 4.
    x = np.array(BATCH["x"])
    want = 1 - 0.1 * np.square(x).sum(0) / 4
    np.testing.assert_allclose(np.array(mx.grad(after)(mx.ones(2))), want, rtol=1e-5)


def test_params_without_the_containers_of_layers_without_arrays_fit():
    transform = ps.optimizers.adam(0.1)
    state = ps.TrainState.create({"layers": [{"w": mx.ones(2)}, {}], "drop": {}}, transform)
    state = state.replace(params={"layers": [{"w": mx.zeros(2)}]})
    step = ps.train_step(lambda p, b, r: mx.square(p["layers"][0]["w"] - 1).sum(), transform)
    assert list(step(state, BATCH)[0].params) == ["layers", "drop"]


def test_a_count_of_steps_stays_at_its_largest():
    state = start()._replace(step=mx.array(2**31 - 1, mx.int32))
    assert ps.train_step(quiet, SGD)(state, BATCH)[0].step.item() == 2**31 - 1


def test_a_step_of_ones_own_that_draws_without_a_key_is_not_compiled():
    def own(state, batch):
        return state, {"noise": mx.random.normal(()) + batch["x"].sum()}

    with pytest.raises(ValueError, match="^compiled: the step: random numbers .*without a key: .*state.rng"):
        ps.compiled(own)(start(), BATCH)
