"""Members as ordinary states, and selection, replacement and perturbation as pure functions."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import populations, tree
from tests.refusals import parts
from tests.training import BATCH, DENSE, TRANSFORM, classifier

STEP = ps.train_step(classifier, TRANSFORM)


def make(seed):
    return ps.TrainState.create(DENSE, TRANSFORM, seed=seed)


def states_of(count):
    return populations.create(make, range(count), learning_rate=[0.1 * (i + 1) for i in range(count)])


def same(a, b):
    assert not tree.differences(tree.spec(a), tree.spec(b))
    return all(mx.array_equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_members_are_ordinary_states_bit_for_bit():
    alone = [make(seed) for seed in range(3)]
    states = populations.stacked(alone)
    assert populations.size(states) == 3
    for index, state in enumerate(alone):
        assert same(populations.member(states, index), state)
    assert same(populations.member(states, -1), alone[-1])
    assert same(populations.stacked(populations.members(states)), states)
    extracted = populations.member(states, 1)
    assert same(STEP(extracted, BATCH)[0], STEP(alone[1], BATCH)[0])


def test_create_sets_one_value_a_member_or_one_for_all():
    states = populations.create(make, [4, 5], learning_rate=mx.array([0.1, 0.2]))
    assert same(populations.member(states, 1), ps.set_hyperparameters(make(5), learning_rate=0.2))
    assert ps.hyperparameters(populations.create(make, [4, 5], learning_rate=0.3))[
        "learning_rate"
    ].tolist() == (pytest.approx([0.3, 0.3]))


def test_any_injected_array_is_a_hyperparameter_of_a_member():
    transform = ps.transforms.inject_hyperparams(ps.optimizers.adamw)(0.1, b1=0.9, weight_decay=0.0)
    new = lambda seed: ps.TrainState.create(DENSE, transform, seed=seed)  # noqa: E731
    states = populations.create(new, [0, 0], b1=[0.5, 0.9], weight_decay=[0.0, 0.1])
    step = ps.train_step(classifier, transform)
    got, _ = ps.population(step)(states, BATCH)
    got, _ = ps.population(step)(got, BATCH)
    for index, values in enumerate([(0.5, 0.0), (0.9, 0.1)]):
        fixed = ps.optimizers.adamw(0.1, b1=values[0], weight_decay=values[1])
        alone = ps.TrainState.create(DENSE, fixed, seed=0)
        own = ps.train_step(classifier, fixed)
        for _ in range(2):
            alone, _ = own(alone, BATCH)
        assert mx.allclose(got.params["w"][index], alone.params["w"], rtol=1e-5, atol=1e-6)


def test_select_and_replace_copy_whole_members():
    states = states_of(4)
    assert same(populations.members(populations.select(states, [3, 3, 0]))[1], populations.member(states, 3))
    new = populations.replace(states, mx.array([0, 2]), mx.array([3, 1]))
    assert same(new.replace(rng=states.rng), new)  # keys stay
    assert same(populations.member(new, 0).opt_state, populations.member(states, 3).opt_state)
    assert same(populations.member(new, 2).params, populations.member(states, 1).params)
    assert same(populations.member(new, 1), populations.member(states, 1))
    assert same(populations.replace(states, [], []), states)


def test_ranks_put_what_is_not_finite_last():
    inf, nan = float("inf"), float("nan")
    scores = mx.array([3.0, nan, 1.0, inf, -inf, nan, 1.0])
    assert populations.ranked(scores).tolist() == [4, 2, 6, 0, 3, 1, 5]
    assert populations.ranked(scores, highest=True).tolist() == [3, 0, 2, 6, 4, 1, 5]
    worst, best = populations.truncated(scores, 0.3)
    assert (worst.tolist(), best.tolist()) == ([5, 1], [4, 2])
    assert populations.truncated(mx.array([1.0, 2.0]), 0.5)[0].tolist() == [1]


def test_perturbed_members_have_one_of_the_factors_and_others_stay():
    states = states_of(64)
    new = populations.perturb(states, mx.random.key(1), range(32), learning_rate=(0.5, 2.0))
    ratio = new_rates(new) / new_rates(states)
    assert set(ratio[:32].tolist()) == {0.5, 2.0}
    assert set(ratio[32:].tolist()) == {1.0}
    wide = new_rates(populations.perturb(states, mx.random.key(1), learning_rate=3.0)) / new_rates(states)
    assert 1 / 3 - 1e-6 <= wide.min().item() < 0.5
    assert 2 < wide.max().item() <= 3 + 1e-6
    assert same(new.params, states.params)
    assert same(new.rng, states.rng)


def new_rates(states):
    return ps.hyperparameters(states)["learning_rate"]


def test_population_based_training_is_one_compiled_function_without_a_wait():
    step = ps.population(STEP)

    def generation(states, batch):
        states, metrics = step(states, batch)
        worst, best = populations.truncated(metrics["loss"], 0.25)
        states = populations.replace(states, worst, best)
        key = ps.rng.fold_in(states.rng[0], 1)
        return populations.perturb(states, key, worst, learning_rate=(0.8, 1.25)), metrics

    states = states_of(4)
    want, _ = generation(states, BATCH)
    got, _ = ps.compiled(generation)(states, BATCH)
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-6)


REFUSED = {
    "no seed": (lambda s: populations.create(make, []), "populations.create: seeds ... none"),
    "values": (
        lambda s: populations.create(make, range(3), learning_rate=[0.1, 0.2]),
        "populations.create: learning_rate ... 3 members ... (2,)",
    ),
    "name": (
        lambda s: populations.create(make, range(2), b1=[0.1, 0.2]),
        "populations.create: b1 ... learning_rate",
    ),
    "seeds": (lambda s: populations.create(make, 3), "populations.create: seeds ... list ... got 3"),  # type: ignore
    "negative": (
        lambda s: populations.create(make, range(2), learning_rate=[0.1, -0.2]),
        "populations.create: learning_rate.1 ... 0, got -0.2",
    ),
    "unordered": (
        lambda s: populations.create(make, range(2), learning_rate={0.1, 0.2}),  # type: ignore
        "populations.create: learning_rate ... list ... got {",
    ),
    "text": (
        lambda s: populations.create(make, range(2), learning_rate="fast"),
        "populations.create: learning_rate ... 'fast'",
    ),
    "alike": (
        lambda s: populations.stacked([make(0), make(1).replace(params={"w": mx.ones(2)})]),
        "populations.stacked: states ... params.w ... states.1 ... states.0",
    ),
    "empty": (lambda s: populations.stacked([]), "populations.stacked: states ... none"),
    "one": (lambda s: populations.stacked(s), "populations.stacked: states ... got one TrainState"),
    "none kept": (lambda s: populations.select(s, []), "populations.select: indices ... got none"),
    "twice": (
        lambda s: populations.replace(s, [0, 0], [1, 2]),
        "populations.replace: indices ... got [0, 0]",
    ),
    "index": (lambda s: populations.member(s, 3), "populations.member: index ... [-3, 3), got 3"),
    "single": (lambda s: populations.size(make(0)), "populations.size: states.step ... members"),
    "range": (lambda s: populations.select(s, [0, 3]), "populations.select: indices.1 ... 3 ... got 3"),
    "dtype": (
        lambda s: populations.select(s, mx.array([0.0])),
        "populations.select: indices ... integers ... mlx.core.float32",
    ),
    "lengths": (
        lambda s: populations.replace(s, [0], [1, 2]),
        "populations.replace: ... length, got 1 and 2",
    ),
    "scores": (lambda s: populations.ranked(mx.ones((2, 2))), "populations.ranked: scores ... (2, 2)"),
    "fraction": (lambda s: populations.truncated(mx.ones(4), 0.6), "populations.truncated: fraction ... 0.6"),
    "few": (
        lambda s: populations.truncated(mx.ones(1)),
        "populations.truncated: scores ... 2 members, got 1",
    ),
    "factor": (
        lambda s: populations.perturb(s, mx.random.key(0), learning_rate=(-1.0,)),
        "populations.perturb: learning_rate ... 0, got -1.0",
    ),
    "unknown": (
        lambda s: populations.perturb(s, mx.random.key(0), rate=(2.0,)),
        "populations.perturb: rate ... learning_rate",
    ),
    "nothing": (lambda s: populations.perturb(s, mx.random.key(0)), "populations.perturb: factors ... none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=parts(message)):
        call(states_of(3))
