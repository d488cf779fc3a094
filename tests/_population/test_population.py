"""A step of a population is the step of each member."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep import populations, transforms, tree
from tests.catalogue import CATALOGUE
from tests.refusals import parts
from tests.training import BATCH, DENSE, classifier, ragged

RATES = [0.02 * 1.1**i for i in range(64)]


def adamw():
    return ps.chain(transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-2))


def drawn(seed):
    return {name: mx.random.normal(leaf.shape, key=mx.random.key(seed)) for name, leaf in DENSE.items()}


def population_of(count, transform=None, params=drawn, rates=True):
    transform = transform or adamw()
    make = lambda seed: ps.TrainState.create(params(seed), transform, seed=seed)  # noqa: E731
    return populations.create(make, range(count), **({"learning_rate": RATES[:count]} if rates else {}))


def looped(step, states, batches):
    """The states and metrics of all members, each trained alone."""
    ends = []
    for member in populations.members(states):
        for batch in batches:
            member, metrics = step(member, batch)
        ends.append((member, metrics))
    return populations.stacked(state for state, _ in ends), populations.stacked(m for _, m in ends)


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    assert not tree.differences(tree.spec(a), tree.spec(b))
    for (path, x), y in zip(tree.items(a), tree.leaves(b), strict=True):
        if mx.issubdtype(x.dtype, mx.floating):
            assert mx.allclose(x, y, rtol=rtol, atol=atol), path
        else:
            assert mx.array_equal(x, y), path


def assert_same(a, b):
    assert not tree.differences(tree.spec(a), tree.spec(b))
    assert all(mx.array_equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def check(step, states, batches, **options):
    want = looped(step, states, batches)
    made = ps.population(step, **options)
    got = states
    for batch in batches:
        got, metrics = made(got, batch)
    assert_close((got, metrics), want)


@pytest.mark.parametrize("count", [2, 8, 64])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_a_population_equals_a_loop_over_its_members(count, chunk):
    step = ps.train_step(classifier, adamw())
    states, batches = population_of(count), [ragged(seed, rows=4) for seed in range(2)]
    if chunk == 1 and count == 64:
        count, states = 3, population_of(3)
    want = looped(step, states, batches)
    made = ps.population(step, chunk=chunk)
    got = states
    for batch in batches:
        got, metrics = made(got, batch)
    (assert_same if chunk == 1 else assert_close)((got, metrics), want)


def test_a_compiled_population_equals_its_members_with_one_trace_a_member_count():
    step = ps.train_step(classifier, adamw())
    made = ps.compiled(ps.population(step))
    for count in (2, 8, 2):
        states = population_of(count)
        got, metrics = made(states, BATCH)
        assert_close((got, metrics), looped(step, states, [BATCH]))
    assert made.traces == 2


def test_each_member_may_have_its_own_batch():
    step, states = ps.train_step(classifier, adamw()), population_of(3)
    rows = [ragged(seed) for seed in range(3)]
    got, _ = ps.population(step, shared_batch=False)(states, populations.stacked(rows))
    chunked, _ = ps.population(step, shared_batch=False, chunk=2)(states, populations.stacked(rows))
    alone = [step(state, row)[0] for state, row in zip(populations.members(states), rows, strict=True)]
    assert_close(got, populations.stacked(alone))
    assert_close(chunked, populations.stacked(alone))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_transform_serves_a_population(name):
    transform = CATALOGUE[name]()
    params = lambda seed: {  # noqa: E731
        "w": mx.random.normal((4, 3), key=mx.random.key(seed)),
        "b": mx.random.normal((3,), key=mx.random.key(seed + 9)),
    }
    states = population_of(2, transform, params, rates=False)
    check(ps.train_step(classifier, transform), states, [BATCH, ragged(3)])


STEPS = {
    "microbatches": lambda: ps.train_step(classifier, adamw(), microbatches=2),
    "sam": lambda: ps.sam_step(classifier, adamw()),
    "scan": lambda: ps.scan(ps.train_step(classifier, adamw()), 2),
    "measured": lambda: ps.train_step(classifier, adamw(), measure=[ps.metrics.grad_norms()]),
    "compiled": lambda: ps.compiled(ps.train_step(classifier, adamw())),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_all_builders_serve_a_population(name):
    batch = populations.stacked([BATCH, ragged(1)]) if name == "scan" else BATCH
    check(STEPS[name](), population_of(3), [batch, batch])


def test_a_scan_of_a_population_is_its_steps():
    step, states = ps.population(ps.train_step(classifier, adamw())), population_of(3)
    rows = [ragged(seed) for seed in range(2)]
    got, metrics = ps.scan(step, 2)(states, populations.stacked(rows))
    want, first = step(states, rows[0])
    want, second = step(want, rows[1])
    assert_same(got, want)
    assert_same(metrics, populations.stacked([first, second]))


def test_loss_scaled_and_packed_members():
    transform = transforms.dynamic_loss_scale(ps.optimizers.adamw(1e-2))
    check(ps.loss_scaled_step(classifier, transform), population_of(3, transform, rates=False), [BATCH])
    transform = ps.optimizers.adamw(1e-2)
    make = lambda seed: ps.TrainState.create(ps.packed(drawn(seed)), transform, seed=seed)  # noqa: E731
    states = populations.create(make, range(3), learning_rate=[0.1, 0.2, 0.3])
    check(ps.train_step(classifier, transform), states, [BATCH, BATCH])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.norm = nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm(8)
        self.last = nn.Linear(8, 3)

    def __call__(self, x):
        return self.last(nn.relu(self.norm(self.drop(self.first(x)))))


def test_members_draw_their_own_dropout_and_keep_their_own_statistics():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, model_state = ps.functional(Net())

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        return ps.losses.cross_entropy(logits, batch["y"], ignore_index=-100), {}, model_state

    transform = adamw()
    make = lambda seed: ps.TrainState.create(params, transform, seed=seed, model_state=model_state)  # noqa: E731
    states, step = populations.create(make, range(3)), ps.train_step(loss_fn, transform, stateful=True)
    check(step, states, [BATCH, BATCH])
    _, metrics = ps.population(step)(states, BATCH)
    assert len({round(loss.item(), 6) for loss in metrics["loss"]}) == 3


def test_a_member_that_is_not_finite_disturbs_no_other():
    states, step = population_of(3), ps.population(ps.train_step(classifier, adamw()))
    broken = states.replace(params={**states.params, "w": states.params["w"].at[1].multiply(mx.nan)})
    for _ in range(2):
        states, _ = step(states, BATCH)
        broken, odd = step(broken, BATCH)
    assert mx.isnan(odd["loss"]).tolist() == [False, True, False]
    assert_same(populations.select(broken, [0, 2]), populations.select(states, [0, 2]))


def test_measurements_are_made_when_they_are_due():
    step = ps.train_step(classifier, adamw(), measure=[ps.metrics.grad_norms(every=2)])
    made, states = ps.population(step), population_of(2)
    names = [set(made.at(number)(states, BATCH)[1]) for number in range(3)]
    assert names[0] == names[2] < names[1]
    assert made.at(0) is made.at(2)
    assert made.parts(states, BATCH).gradients["w"].shape == (2, 4, 3)


def test_members_are_evaluated_like_single_states():
    states = population_of(3)
    measure = ps.eval_step(classifier)
    batches = [ragged(1), ragged(2)]
    found = populations.evaluate(ps.compiled(ps.population(measure)), states, batches)
    for state, got in zip(populations.members(states), found, strict=True):
        want = ps.evaluate(measure, state, batches)
        assert got == pytest.approx(want, rel=1e-5)


def quantized(w):
    """Rounded weights, whose gradient is that of the weights."""
    function = mx.custom_function(lambda w: mx.round(4 * w) / 4)
    function.vjp(lambda w, cotangent, _: cotangent)
    return function(w)


@pytest.mark.parametrize("make", [ps.unrolled, ps.scan])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_gradient_through_a_population_is_that_of_each_member(make, chunk):
    """`mx.vmap` alone forgets gradients that functions define: here all would be 0."""
    loss_fn = lambda params, batch, rng: mx.square(batch @ quantized(params) - 1).mean()  # noqa: E731
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(loss_fn, transform)
    states = populations.stacked(
        ps.TrainState.create(mx.random.normal((3,), key=mx.random.key(seed)), transform) for seed in range(3)
    )
    batches = mx.random.normal((2, 8, 3), key=mx.random.key(9))

    def last(rates, batches, step, states):
        end, metrics = make(step, 2)(ps.set_hyperparameters(states, learning_rate=rates), batches)
        return metrics["loss"][-1].sum() + end.params.sum()

    rates, slope = mx.array([0.1, 0.2, 0.3]), mx.grad(last, argnums=(0, 1))
    got = slope(rates, batches, ps.population(step, chunk=chunk), states)
    alone = [slope(rates[i], batches, step, populations.member(states, i)) for i in range(3)]
    assert mx.allclose(got[0], mx.stack([rate for rate, _ in alone]), rtol=1e-5)
    assert mx.allclose(got[1], sum((data for _, data in alone), mx.array(0.0)), rtol=1e-4, atol=1e-5)
    assert mx.abs(got[0]).min().item() > 1e-3


def test_the_gradient_through_a_population_of_one_array():
    states = mx.array([[1.0, 2.0], [3.0, 4.0]])
    step: Any = ps.population(lambda state, batch: (state * state, {}))
    assert mx.grad(lambda states: step(states, {})[0].sum())(states).tolist() == (2 * states).tolist()


REFUSED = {
    "one state": (
        lambda s, b: (populations.member(s, 0), b),
        "population: state.step ... members ... state must be a population",
    ),
    "counts": (
        lambda s, b: (s.replace(step=s.step[:2]), b),
        "population: state.params.w ... 2 members ... state.step ... (3, 4, 3)",
    ),
    "python number": (lambda s, b: ({"step": 3}, b), "population: state.step ... number 3"),
    "no state": (lambda s, b: ({}, b), "population: state ... none"),
    "text in a batch": (lambda s, b: (s, {**b, "note": "a"}), "population: batch.note ... got str"),
    "number in a batch": (lambda s, b: (s, {**b, "scale": 2}), "population: batch.scale ... number 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_states_that_are_no_population_are_refused(name):
    change, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=parts(message)):
        ps.population(ps.train_step(classifier, adamw()))(*change(population_of(3), BATCH))


def test_other_wrong_arguments_are_refused():
    step, states = ps.train_step(classifier, adamw()), population_of(3)
    with pytest.raises(ValueError, match=parts("population: batch.x ... 3 members ... (8, 5, 4)")):
        ps.population(step, shared_batch=False)(states, BATCH)
    with pytest.raises(ValueError, match=parts("population: chunk ... 1, got 0")):
        ps.population(step, chunk=0)
    with pytest.raises(TypeError, match=parts("population: step ... callable")):
        ps.population(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=parts("population: step ... number 3 ... metrics")):
        ps.population(lambda state, batch: {"state": state, "metrics": 3})(states, BATCH)  # type: ignore
    own = lambda state, batch: (state, {"r": mx.linalg.qr(state["w"], stream=mx.cpu)[1]})  # noqa: E731
    with pytest.raises(ValueError, match=parts("population: step ... QRF ... chunk=1")):
        ps.population(own)({"w": mx.ones((2, 3, 3))}, BATCH)
    assert ps.population(own, chunk=1)({"w": mx.ones((2, 3, 3))}, BATCH)[1]["r"].shape == (2, 3, 3)


def test_what_reduces_or_measures_members_is_checked():
    states, step = population_of(2), ps.population(ps.train_step(classifier, adamw()))
    for reduce, got in (
        (lambda name, values: [values], "list for loss"),
        (lambda name, values: {name: 3.0}, "float for loss"),
        (lambda name, values: {name: values}, "shape (2,) for loss"),
    ):
        with pytest.raises(TypeError, match=parts(f"populations.reduced: reduce must return ... got {got}")):
            populations.reduced(step, reduce)(states, BATCH)  # type: ignore
    total = ps.eval_step(lambda params, batch, rng: ps.Mean.of(params["w"]))  # it broadcasts over members
    with pytest.raises(ValueError, match=parts("populations.evaluate: eval_step ... 2 members")):
        populations.evaluate(total, states, [BATCH])


def test_chunks_hold_the_activations_of_a_few_members():
    def loss_fn(params, batch, rng):
        hidden = batch["x"]
        for _ in range(6):
            hidden = mx.tanh(hidden @ params["w"])
        return mx.square(hidden).mean()

    transform = ps.optimizers.sgd(0.1)
    make = lambda seed: ps.TrainState.create({"w": mx.eye(8)}, transform, seed=seed)  # noqa: E731
    states, batch = populations.create(make, range(16)), {"x": mx.ones((4096, 8))}
    mx.eval(states, batch)
    peaks = []
    for chunk in (None, 2, 1):
        step = ps.population(ps.train_step(loss_fn, transform), chunk=chunk)
        mx.eval(step(states, batch))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(step(states, batch))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < peaks[0] / 4
    assert peaks[2] < peaks[0] / 8


def test_the_memory_of_a_population_is_predicted():
    states, step = population_of(16), ps.train_step(classifier, adamw())
    batch = ragged(0, rows=64)
    whole, chunked = (
        ps.memory.predict(ps.population(step, chunk=chunk), states, batch).peak for chunk in (None, 2)
    )
    assert 0 < chunked < whole / 2
    packed = population_of(16, params=lambda seed: ps.packed(drawn(seed)))
    assert ps.memory.predict(ps.population(step), packed, batch).peak == pytest.approx(whole, rel=0.2)
