"""Hyperparameters in the state: read, set, injected; changes that a schedule would overwrite are refused."""

from typing import NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import hyperparameters, optimizers, schedules, set_hyperparameters, transforms, tree
from purestep.transforms import inject_hyperparams, named_chain, partition
from tests._transforms.walking import draws, steps_of
from tests.refusals import parts
from tests.trees import like, same_bits, snapshot

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.bfloat16), None]}


class ShownState(NamedTuple):
    """A state whose rate follows a schedule."""

    learning_rate: mx.array
    scheduled = True


TWO = partition({"a": optimizers.adam(0.1), "b": optimizers.sgd(0.2)}, {"w": "a", "b": "b"})


def loss_fn(params, batch, rng):
    return mx.square(params["w"] - batch["x"]).mean()


def last_step(transform, steps, state=None):
    """Return the updates of the last step, and the last state."""
    return steps_of(transform, draws(PARAMS, steps), PARAMS, state)[-1]


def test_a_name_that_occurs_once_is_its_own_key_and_others_have_their_path():
    assert {k: v.item() for k, v in hyperparameters(optimizers.adamw(0.5).init(PARAMS)).items()} == {
        "learning_rate": 0.5
    }
    assert list(hyperparameters(TWO.init(PARAMS))) == [
        "inner_states.a.1.learning_rate",
        "inner_states.b.1.learning_rate",
    ]
    assert hyperparameters(transforms.trace(0.9).init(PARAMS)) == {}


def test_hyperparameters_are_found_in_a_whole_train_state():
    state = ps.TrainState.create(PARAMS, named_chain(("adam", TWO), ("end", ps.identity())))
    assert list(hyperparameters(state)) == [
        "opt_state.adam.inner_states.a.1.learning_rate",
        "opt_state.adam.inner_states.b.1.learning_rate",
    ]


def test_a_new_rate_is_used_and_the_rest_of_the_state_is_unchanged():
    transform = optimizers.adam(0.1)
    _, state = last_step(transform, 2)
    before = snapshot(state)
    changed = set_hyperparameters(state, learning_rate=0.3)
    assert snapshot(state) == before
    assert tree.alike(changed, state)
    assert same_bits(changed[0], state[0])
    got, _ = last_step(transform, 1, changed)
    want, _ = last_step(transform, 1, state)
    assert mx.allclose(got["w"], 3 * want["w"], rtol=1e-6)


def test_a_train_state_is_changed_with_no_retrace_and_trains_on():
    transform = ps.chain(transforms.clip_by_global_norm(100.0), optimizers.sgd(0.1))
    state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    step, batch = ps.train_step(loss_fn, transform), {"x": mx.array([1.0])}
    changed = set_hyperparameters(state, learning_rate=0.25)
    assert type(changed) is ps.TrainState
    assert ps.tree.spec(changed) == ps.tree.spec(state)
    new, metrics = step(changed, batch)
    assert (new.params["w"].item(), metrics["learning_rate"].item()) == (0.5, 0.25)


def test_an_ambiguous_name_is_refused_and_its_path_accepted():
    state = TWO.init(PARAMS)
    message = "learning_rate ... ambiguous ... inner_states.a.1.learning_rate, inner_states.b"
    with pytest.raises(ValueError, match=parts(message)):
        set_hyperparameters(state, learning_rate=1.0)
    key = "inner_states.b.1.learning_rate"
    values = hyperparameters(set_hyperparameters(state, {key: 0.75}))
    assert [value.item() for value in values.values()] == [pytest.approx(0.1), 0.75]
    assert same_bits(set_hyperparameters(state, hyperparameters(state)), state)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_population_of_rates_is_set_as_a_whole_or_one_by_one(shape):
    state = optimizers.sgd(0.1).init(PARAMS)
    state = (state[0], state[1]._replace(learning_rate=mx.full(shape, 0.1)))
    for value in (0.5, mx.array(0.5), mx.full(shape, 0.5, mx.float16)):
        rate = set_hyperparameters(state, learning_rate=value)[1].learning_rate
        assert (rate.shape, rate.dtype, rate.reshape(-1)[0].item()) == (shape, mx.float32, 0.5)


def test_a_rate_is_differentiable():
    transform = optimizers.sgd(0.1)
    state = transform.init(PARAMS)

    def moved(rate):
        updates, _ = transform.update(like(PARAMS, 0), set_hyperparameters(state, learning_rate=rate))
        return updates["w"].sum()

    assert mx.grad(moved)(mx.array(0.3)).item() == pytest.approx(-like(PARAMS, 0)["w"].sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"rate": 1.0}, ValueError, "set_hyperparameters: rate ... not in the state ... learning_rate"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate ... 0, got -0.1"),
        ({"learning_rate": mx.nan}, ValueError, "learning_rate ... finite, got nan"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate ... number, got '0.1'"),
        ({"learning_rate": mx.ones(2)}, ValueError, "learning_rate ... shape (), got (2,)"),
    ],
)
def test_a_bad_value_or_name_is_refused(values, error, message):
    with pytest.raises(error, match=parts(message)):
        set_hyperparameters(optimizers.sgd(0.1).init(PARAMS), **values)


def test_a_state_without_hyperparameters_says_so():
    with pytest.raises(ValueError, match="set_hyperparameters: learning_rate .*no hyperparameters"):
        set_hyperparameters((), learning_rate=1.0)


@pytest.mark.parametrize("steps", [1, 5])
def test_injected_numbers_do_what_plain_numbers_do(steps):
    plain, _ = last_step(optimizers.adamw(0.1, weight_decay=0.3), steps)
    got, state = last_step(inject_hyperparams(optimizers.adamw)(0.1, weight_decay=0.3), steps)
    for a, b in zip(tree.leaves(got), tree.leaves(plain), strict=True):
        assert mx.allclose(a, b, rtol=1e-6, atol=1e-8)
    assert state.count.item() == steps
    assert {name: (x.dtype, x.ndim) for name, x in state.hyperparams.items()} == {
        "learning_rate": (mx.float32, 0),
        "weight_decay": (mx.float32, 0),
    }


def test_injected_schedules_are_evaluated_at_every_update():
    transform = inject_hyperparams(transforms.add_decayed_weights)(schedules.linear(1.0, 3.0, 2))
    zeros, state = tree.zeros_like(PARAMS), transform.init(PARAMS)
    assert hyperparameters(state)["weight_decay"].item() == 1.0
    for want in (1.0, 2.0, 3.0, 3.0):
        updates, state = transform.update(zeros, state, PARAMS)
        assert updates["w"][0, 0].item() == want
        assert state.hyperparams["weight_decay"].item() == want


@pytest.mark.parametrize("rate", [0.1, schedules.constant(0.1)])
def test_an_injected_rate_reaches_the_inner_state_where_metrics_read_it(rate):
    transform = inject_hyperparams(optimizers.sgd)(rate, momentum=0.5)
    state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    if not callable(rate):
        state = set_hyperparameters(state, learning_rate=0.25, momentum=0.0)
    new, metrics = ps.train_step(loss_fn, transform)(state, {"x": mx.array([1.0])})
    want = 0.1 if callable(rate) else 0.25
    assert metrics["learning_rate"].item() == pytest.approx(want)
    assert new.params["w"].item() == pytest.approx(2 * want)
    assert ps.tree.alike(new, state)


def test_a_factory_of_ones_own_may_compute_with_its_arguments():
    def factory(learning_rate, *, keep=True):
        return transforms.scale(-2 * learning_rate)

    transform = inject_hyperparams(factory)(learning_rate=0.5, keep=False)
    state = set_hyperparameters(transform.init(PARAMS), learning_rate=3.0)
    assert list(state.hyperparams) == ["learning_rate"]
    updates, _ = transform.update({"w": mx.array(1.0)}, state)
    assert updates["w"].item() == -6.0


def test_static_arguments_are_passed_on_unchanged():
    transform = inject_hyperparams(optimizers.adamw, static_args=["mask", "eps_root"])(
        0.1, eps_root=0.0, mask=transforms.matrices
    )
    assert list(last_step(transform, 1)[1].hyperparams) == ["learning_rate"]
    single = inject_hyperparams(optimizers.sgd, static_args="momentum")(0.1, momentum=0.9)
    assert list(single.init(PARAMS).hyperparams) == ["learning_rate"]
    half = inject_hyperparams(optimizers.sgd, hyperparam_dtype=mx.float16)(0.5)
    assert half.init(PARAMS).hyperparams["learning_rate"].dtype == mx.float16


def test_a_read_only_rate_cannot_be_set():
    state = (ShownState(mx.array(0.5)), ())
    assert hyperparameters(state)["learning_rate"].item() == 0.5
    with pytest.raises(ValueError, match="set_hyperparameters: learning_rate follows a schedule"):
        set_hyperparameters(state, learning_rate=0.5)


def test_an_injected_schedule_cannot_be_set():
    transform = inject_hyperparams(optimizers.adamw)(schedules.constant(0.1), weight_decay=0.3)
    state = transform.init(PARAMS)
    assert set_hyperparameters(state, weight_decay=0.5).hyperparams["weight_decay"].item() == 0.5
    with pytest.raises(ValueError, match="set_hyperparameters: learning_rate follows a schedule"):
        set_hyperparameters(state, learning_rate=0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: inject_hyperparams(3), TypeError, "inject_hyperparams: inner_factory ... callable, got 3"),
        (
            lambda: inject_hyperparams(optimizers.sgd, "rate"),
            ValueError,
            "inject_hyperparams: static_args ... inner_factory: ['rate']",
        ),
        (lambda: inject_hyperparams(optimizers.sgd)(-0.1), ValueError, "learning_rate ... 0, got -0.1"),
        (
            lambda: inject_hyperparams(optimizers.sgd)(mx.nan),
            ValueError,
            "inject_hyperparams: learning_rate ... finite, got nan",
        ),
        (lambda: inject_hyperparams(optimizers.sgd)(rate=0.1), TypeError, "sgd: rate ... argument"),
        (
            lambda: inject_hyperparams(lambda x: x)(1.0),
            TypeError,
            "inject_hyperparams: ... inner_factory returns ... GradientTransform, got 1.0",
        ),
        (
            lambda: inject_hyperparams(transforms.add_decayed_weights)(lambda count: mx.ones(2)),
            ValueError,
            "inject_hyperparams: weight_decay ... 0-d, got shape (2,)",
        ),
    ],
)
def test_bad_injections_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
