"""States without arrays for some parameters, vmapped over a population and differentiated."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from tests.refusals import parts
from tests.training import BATCH, DENSE, TRANSFORM, classifier, start

ADAM = optimizers.adam
TRANSFORMS = {
    "muon": lambda: optimizers.muon(0.1),
    "partition": lambda: transforms.partition({"a": ADAM(0.1), "b": ADAM(0.2)}, [("w", "a"), ("*", "b")]),
    "masked": lambda: transforms.masked(ADAM(0.1), {"w": True, "b": False}),
    "frozen": lambda: ps.chain(ADAM(0.1), transforms.freeze({"w": False, "b": True})),
    "lars": lambda: optimizers.lars(0.1, 0.1, transforms.matrices, trust_ratio_mask=transforms.matrices),
    "rmsprop": lambda: optimizers.rmsprop(0.1),
    "nested": lambda: transforms.flatten(transforms.masked(ADAM(0.1), True)),
}


def loss_fn(params, batch, rng):
    return mx.square(params["w"] - batch["x"]).mean() + mx.square(params["b"] - 0.3).mean()


def started(transform, i):
    params = {"w": mx.random.normal((3, 4), key=mx.random.key(i)), "b": mx.array([0.1, 0.2, 0.4])}
    return ps.TrainState.create(params, transform, seed=i)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_step_over_a_population_is_that_of_each_member(name):
    transform = TRANSFORMS[name]()
    step = ps.train_step(loss_fn, transform)
    states = [started(transform, i) for i in range(3)]
    xs = mx.random.normal((3, 3, 4), key=mx.random.key(9))
    together, _ = mx.vmap(step)(tree.map(lambda *leaves: mx.stack(leaves), *states), {"x": xs})
    for i, state in enumerate(states):
        alone, _ = step(state, {"x": xs[i]})
        for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
            assert mx.allclose(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_gradient_through_steps_is_that_of_a_finite_difference(name):
    transform = TRANSFORMS[name]()
    step, batch = ps.train_step(loss_fn, transform), {"x": mx.ones((3, 4))}

    def outer(state):
        for _ in range(3):
            state, metrics = step(state, batch)
        return metrics["loss"]

    def of_params(params):
        return outer(started(transform, 0).replace(params=params))

    params = started(transform, 0).params
    slope = mx.grad(of_params)(params)
    along = {"w": mx.random.normal((3, 4), key=mx.random.key(5)), "b": mx.array([1.0, -1.0, 0.5])}
    expected = sum((slope[k] * along[k]).sum().item() for k in along)
    h = 3e-3
    ahead, behind = (of_params({k: params[k] + d * along[k] for k in along}).item() for d in (h, -h))
    assert expected == pytest.approx((ahead - behind) / (2 * h), rel=0.03, abs=3e-3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_whole_state_can_be_what_is_differentiated(name):
    transform = TRANSFORMS[name]()
    step = ps.train_step(loss_fn, transform)
    state = started(transform, 0)

    def outer(opt_state):
        after, _ = step(state.replace(opt_state=opt_state), {"x": mx.ones((3, 4))})
        return after.params["w"].sum()

    slopes = mx.grad(outer)(state.opt_state)
    assert [slope.shape for slope in tree.leaves(slopes)] == [x.shape for x in tree.leaves(state.opt_state)]


BARE = {
    "masked": lambda: transforms.masked(optimizers.adamw(0.1), True),
    "masked out": lambda: transforms.masked(optimizers.adamw(0.1), False),
    "by matrices": lambda: transforms.masked(optimizers.adamw(0.1), transforms.matrices),
    "by path": lambda: transforms.masked(optimizers.adamw(0.1), transforms.by_path("*")),
    "frozen": lambda: transforms.freeze(True),
    "partition": lambda: transforms.partition({"a": ADAM(0.1), "b": optimizers.sgd(0.1)}, "a"),
    "partition by pattern": lambda: transforms.partition(
        {"a": ADAM(0.1), "b": optimizers.sgd(0.1)}, [("*", "a")]
    ),
    "muon": lambda: optimizers.muon(0.1, weight_decay=0.1, weight_decay_mask=True),
    "lars": lambda: optimizers.lars(0.1, 0.1, transforms.matrices, trust_ratio_mask=transforms.matrices),
}


@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
@pytest.mark.parametrize("name", BARE)
def test_parameters_that_are_one_array_are_as_in_a_dict(name, shape):
    params, x = mx.full(shape, 2.0), mx.full(shape, 0.5)
    transform = BARE[name]()
    if name == "muon" and len(shape) < 2:
        transform = optimizers.muon(0.1)
    state, held = transform.init(params), transform.init({"w": params})
    for _ in range(2):
        updates, state = transform.update(x, state, params)
        in_dict, held = transform.update({"w": x}, held, {"w": params})
        assert mx.array_equal(updates, in_dict["w"])
    stacked = tree.map(lambda leaf: mx.stack([leaf, leaf]), state)
    members = mx.vmap(lambda x, s: transform.update(x, s, params)[0])(mx.stack([x, x]), stacked)
    assert mx.allclose(members[1], transform.update(x, state, params)[0], rtol=1e-5)


def test_one_array_has_a_name_in_errors():
    for make, message in (
        (lambda: transforms.masked(ADAM(0.1), 3), "masked: mask ... True or False, got 3 at the tree"),
        (
            lambda: optimizers.muon(0.1, matrices=True),
            "matrices_and_rest: a matrix ... 2 axes, got shape (3,) at the tree",
        ),
        (lambda: transforms.partition({"a": ADAM(0.1)}, "b"), "partition: param_labels ... the tree ... 'b'"),
        (
            lambda: transforms.partition({"a": ADAM(0.1)}, [("x", "a")]),
            "partition: no pattern of param_labels ... the tree;",
        ),
        (lambda: transforms.masked(ADAM(0.1), transforms.by_path("x")), "by_path: pattern 'x' ... the tree"),
    ):
        with pytest.raises(ValueError, match=parts(message)):
            make().init(mx.ones(3))
    with pytest.raises(ValueError, match="chain: params .* floating, got mlx.core.int32 at the tree"):
        ADAM(0.1).init(mx.array([1, 2]))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_population_shares_one_batch(microbatches):
    step = ps.train_step(classifier, TRANSFORM, microbatches=microbatches)
    states = [start(params=DENSE), start(params=DENSE, seed=9)]
    together = tree.map(lambda *rows: mx.stack(rows), *states)
    got, metrics = mx.vmap(step, in_axes=(0, None))(together, BATCH)
    for index, state in enumerate(states):
        want, want_metrics = step(state, BATCH)
        assert mx.allclose(metrics["loss"][index], want_metrics["loss"])
        assert mx.allclose(got.params["w"][index], want.params["w"], atol=1e-6)
