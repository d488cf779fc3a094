"""Gradients through steps: values, gradients and memory."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import populations, tree
from tests.catalogue import CATALOGUE
from tests.refusals import parts
from tests.training import DENSE, TRANSFORM, classifier, linear_loss, ragged

STEP = ps.train_step(classifier, TRANSFORM)
BATCHES = populations.stacked([ragged(seed) for seed in range(4)])


def start(seed=0):
    return ps.TrainState.create(DENSE, TRANSFORM, seed=seed)


def close(a, b, rtol=1e-5, atol=1e-6):
    assert not tree.differences(tree.spec(a), tree.spec(b))
    for (path, x), y in zip(tree.items(a), tree.leaves(b), strict=True):
        assert mx.allclose(x, y, rtol=rtol, atol=atol), path


@pytest.mark.parametrize("segment", [1, 2, 3, 9])
def test_values_are_those_of_scan(segment):
    close(ps.unrolled(STEP, 4, segment=segment)(start(), BATCHES), ps.scan(STEP, 4)(start(), BATCHES))


def outer(train):
    """The last loss as a function of the rate, the first parameters, a moment and the data."""

    def loss(rate, params, moment, x):
        state = ps.set_hyperparameters(start().replace(params=params), learning_rate=rate)
        state = tree.map_with_path(lambda path, leaf: moment if path.endswith("mu.w") else leaf, state)
        end, metrics = train(state, {**BATCHES, "x": x})
        return metrics["loss"][-1] + mx.square(end.params["w"]).sum()

    return loss


ARGUMENTS = mx.array(0.05), DENSE, mx.ones((4, 3)) * 0.1, BATCHES["x"]


@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_without_recomputation(segment, compiled):
    got = mx.grad(outer(ps.unrolled(STEP, 4, segment=segment)), argnums=(0, 1, 2, 3))
    want = mx.grad(outer(ps.scan(STEP, 4)), argnums=(0, 1, 2, 3))(*ARGUMENTS)
    close((mx.compile(got) if compiled else got)(*ARGUMENTS), want, rtol=1e-4)
    assert all(mx.abs(leaf).max().item() > 1e-6 for leaf in tree.leaves(want))


def test_the_gradient_of_a_rate_is_the_formula_by_hand():
    # Gradient descent on (w - 1) ** 2 from 0: w = 1 - (1 - 2 r) ** n, so dw/dr = 2 n (1 - 2 r) ** (n - 1).
    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    step = ps.train_step(lambda params, batch, rng: mx.square(params["w"] - batch["x"]), transform)
    train = ps.unrolled(step, 5)

    def last(rate):
        return train(ps.set_hyperparameters(state, learning_rate=rate), {"x": mx.ones(5)})[0].params["w"]

    value, slope = mx.value_and_grad(last)(mx.array(0.1))
    assert value.item() == pytest.approx(1 - 0.8**5)
    assert slope.item() == pytest.approx(10 * 0.8**4)


def simulated(rate, momentum, weights, x, y, v):
    """The validation loss after steps of momentum on weighted logistic regression, in float64."""
    w = np.zeros(x.shape[-1])
    velocity = np.zeros_like(w)
    for row, target, weight in zip(x, y, weights, strict=True):
        p = 1 / (1 + np.exp(-row @ w))
        velocity = momentum * velocity + row.T @ (weight * (p - target)) / weight.sum()
        w = w - rate * velocity
    return np.mean((v @ w - 1) ** 2)


def test_rates_momenta_and_data_weights_agree_with_differences_in_float64():
    generator = np.random.default_rng(0)
    x, v = generator.normal(size=(6, 16, 4)), generator.normal(size=(8, 4))
    y, weights = generator.integers(0, 2, (6, 16)), generator.uniform(0.5, 2, (6, 16))
    transform = ps.transforms.inject_hyperparams(ps.optimizers.sgd)(0.3, momentum=0.9)
    validation = mx.array(v, mx.float32)

    def loss_fn(params, batch, rng):  # no gradient flows through the weight of a Mean
        losses = nn.losses.binary_cross_entropy(batch["x"] @ params, batch["y"], reduction="none")
        return (batch["w"] * losses).sum() / batch["w"].sum()

    state = ps.TrainState.create(mx.zeros(4), transform)
    train = ps.unrolled(ps.train_step(loss_fn, transform), 6)
    batches = {"x": mx.array(x, mx.float32), "y": mx.array(y, mx.float32)}

    def last(rate, momentum, weights):
        given = ps.set_hyperparameters(state, learning_rate=rate, momentum=momentum)
        end, _ = train(given, {**batches, "w": weights})
        return mx.square(validation @ end.params - 1).mean()

    given = mx.array(0.3), mx.array(0.9), mx.array(weights, mx.float32)
    value, (rate, momentum, slopes) = mx.value_and_grad(last, argnums=(0, 1, 2))(*given)
    assert value.item() == pytest.approx(simulated(0.3, 0.9, weights, x, y, v), rel=1e-5)
    h = 1e-5
    ends = [simulated(0.3 + d, 0.9, weights, x, y, v) for d in (h, -h)]
    assert rate.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)
    ends = [simulated(0.3, 0.9 + d, weights, x, y, v) for d in (h, -h)]
    assert momentum.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)
    for step, row in ((0, 3), (5, 7)):
        moved = [weights.copy(), weights.copy()]
        moved[0][step, row] += h
        moved[1][step, row] -= h
        ends = [simulated(0.3, 0.9, each, x, y, v) for each in moved]
        want = (ends[0] - ends[1]) / (2 * h)
        assert slopes[step, row].item() == pytest.approx(want, rel=2e-3, abs=1e-6)


NOISY = {"add_noise", "noisy_sgd"}  # the noise of one array depends on the others


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_parameter_with_a_gradient_of_0_changes_no_other_gradient(name):
    """The root of its second moment has no derivative. The values of the step keep their bits."""
    transform = ps.chain(CATALOGUE[name](), ps.transforms.scale(0.3))

    def loss_fn(params, batch, rng):
        dead = [0 * params["w"].sum() * leaf.sum() for leaf in params["dead"]]
        return mx.square(batch @ params["w"] - 1).mean() + sum(dead, mx.array(0.0))

    def last(w, batches, dead, train):
        state = ps.TrainState.create({"w": w, "dead": dead}, transform)
        end, metrics = train(ps.train_step(loss_fn, transform), 2)(state, batches)
        return metrics["loss"].sum() + mx.square(end.params["w"]).sum()

    w, batches = mx.array([0.5, -0.3, 0.2]), mx.random.normal((2, 8, 3), key=mx.random.key(0))
    given = w, batches, [mx.zeros(2), mx.zeros((4, 4))]
    slope = mx.grad(last, argnums=(0, 1))
    got, want = slope(*given, ps.unrolled), slope(w, batches, [], ps.unrolled)
    for a, b in zip(got, want, strict=True):
        assert mx.isfinite(a).all()
        assert name in NOISY or mx.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert last(*given, ps.unrolled).item() == last(*given, ps.scan).item()


def test_a_unit_without_a_gradient_in_a_member_of_a_population():
    loss_fn = lambda params, batch, rng: (params["w"] * batch * (1 + 0 * params["dead"])).sum()  # noqa: E731
    transform = ps.optimizers.adam(0.1)
    states = populations.stacked(
        ps.TrainState.create({"w": mx.array(1.0 + i), "dead": mx.array(0.0)}, transform) for i in range(2)
    )

    def last(w):
        given = states.replace(params={**states.params, "w": w})
        train = ps.unrolled(ps.population(ps.train_step(loss_fn, transform)), 2)
        return train(given, mx.ones(2))[1]["loss"].sum()

    assert mx.grad(last)(states.params["w"]).tolist() == [2.0, 2.0]


def test_coefficients_of_the_loss_are_shared_arguments():
    def step(state, batch, decay):
        def loss_fn(params, batch, rng):
            return linear_loss(params, batch, rng).value + decay * mx.square(params["w"]).sum()

        return ps.train_step(loss_fn, TRANSFORM)(state, batch)

    def last(decay):
        return ps.unrolled(step, 3)(start(), tree.map(lambda x: x[:3], BATCHES), decay)[1]["loss"][-1]

    slope = mx.grad(last)(mx.array(0.1)).item()
    assert slope == pytest.approx((last(mx.array(0.11)) - last(mx.array(0.09))).item() / 0.02, rel=1e-2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def __call__(self, x):
        return self.last(self.drop(nn.relu(self.first(x))))


def test_a_recomputed_step_draws_the_same_numbers():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(Net())
    loss_fn = lambda params, batch, rng: ps.losses.cross_entropy(  # noqa: E731
        apply(params, batch["x"], rng=rng), batch["y"], ignore_index=-100
    )
    # `scan` has no derivative where a unit without a gradient has a second moment of 0.
    transform = ps.optimizers.adamw(1e-2, eps_root=1e-12)
    step = ps.train_step(loss_fn, transform)
    state = ps.TrainState.create(params, transform)

    def last(train, rate):
        given = ps.set_hyperparameters(state, learning_rate=rate)
        return train(given, BATCHES)[1]["loss"][-1]

    got = mx.grad(lambda rate: last(ps.unrolled(step, 4), rate))(mx.array(0.05))
    want = mx.grad(lambda rate: last(ps.scan(step, 4), rate))(mx.array(0.05))
    assert got.item() == pytest.approx(want.item(), rel=1e-4)


def test_hypergradients_of_a_population():
    loss_fn = lambda params, batch, rng: mx.square(batch["x"] @ params["w"] + params["b"]).mean()  # noqa: E731
    step = ps.train_step(loss_fn, TRANSFORM)
    batches = {"x": BATCHES["x"].reshape(4, 40, 4)}  # MLX 0.32 cannot vmap second derivatives of 3-d batches

    def last(rate, params):
        given = ps.set_hyperparameters(start().replace(params=params), learning_rate=rate)
        return ps.unrolled(step, 4)(given, batches)[1]["loss"][-1]

    rates, params = mx.array([0.05, 0.1]), populations.stacked([DENSE, tree.map(mx.negative, DENSE)])
    together = mx.vmap(mx.grad(last))(rates, params)
    for index in range(2):
        alone = mx.grad(last)(rates[index], populations.member(params, index))
        assert together[index].item() == pytest.approx(alone.item(), rel=1e-4)


def peak(train, n, state, rows):
    """The peak of memory of a gradient through `n` steps, above what exists before."""
    batches = {"x": mx.stack([rows] * n)}

    def last(rate):
        return train(n)(ps.set_hyperparameters(state, learning_rate=rate), batches)[1]["loss"][-1]

    mx.eval(state, batches)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(last)(mx.array(0.01)))
    return mx.get_peak_memory() - before


def test_memory_grows_by_states_and_not_by_activations():
    width, rows = 16, 4096

    def loss_fn(params, batch, rng):
        hidden = batch["x"]
        for _ in range(4):
            hidden = mx.tanh(hidden @ params["w"])
        return mx.square(hidden).mean()

    transform = ps.optimizers.adam(0.01)
    state = ps.TrainState.create({"w": mx.eye(width)}, transform)
    step, x = ps.train_step(loss_fn, transform), mx.random.normal((rows, width), key=mx.random.key(0))
    activation = 4 * rows * width
    few, many = (peak(lambda n: ps.unrolled(step, n), n, state, x) for n in (2, 8))
    assert many - few < 8 * activation  # six states, which are small, and the gradients of six batches
    few, many = (peak(lambda n: ps.scan(step, n), n, state, x) for n in (2, 8))
    assert many - few > 40 * activation


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=parts("unrolled: n ... 1, got 0")):
        ps.unrolled(STEP, 0)
    with pytest.raises(ValueError, match=parts("unrolled: segment ... 1, got 0")):
        ps.unrolled(STEP, 2, segment=0)
    with pytest.raises(ValueError, match=parts("unrolled: batches.x ... n=3 ... (4, 8, 5, 4)")):
        ps.unrolled(STEP, 3)(start(), BATCHES)
    with pytest.raises(TypeError, match=parts("unrolled: state.w ... number 3")):
        ps.unrolled(STEP, 4)({"w": 3}, BATCHES)
    with pytest.raises(ValueError, match=parts("unrolled: step ... structure ... w ... (2,)")):
        ps.unrolled(lambda state, batch: ({"w": mx.ones(2)}, {}), 4)({"w": mx.ones(3)}, BATCHES)
    with pytest.raises(TypeError, match=parts("unrolled: step ... metrics")):
        ps.unrolled(lambda state, batch: state, 4)({"w": mx.ones(3)}, BATCHES)
