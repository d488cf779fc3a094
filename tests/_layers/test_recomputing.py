"""`recompute`: gradients to the arguments, the same draws, and captured parameters refused."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.layers import recompute

W = {"a": mx.random.normal((8, 8), key=mx.random.key(0)), "b": mx.random.normal((8,), key=mx.random.key(1))}
X = mx.random.normal((4, 8), key=mx.random.key(2))


def block(w, x, indices, *, kind):
    assert kind == "tanh"
    return {"out": mx.tanh(x @ w["a"] + w["b"])[indices], "count": indices + 1, "none": None}


@pytest.mark.parametrize("wrap", [lambda f: f, mx.compile])
def test_gradients_reach_trees_of_arguments(wrap):
    def loss(fn):
        def value(w, x):
            out = fn(w, x, mx.array([0, 2]), kind="tanh")
            assert out["none"] is None
            return mx.square(out["out"]).sum() + out["count"].sum()

        return wrap(mx.value_and_grad(value, argnums=(0, 1)))

    got, want = loss(recompute(block))(W, X), loss(block)(W, X)
    for a, b in zip(ps.tree.leaves(got), ps.tree.leaves(want), strict=True):
        assert mx.allclose(a, b, rtol=1e-5)


def test_second_derivatives():
    def once(fn):
        return lambda x: mx.grad(lambda x: fn(W, x, mx.array([0, 1]), kind="tanh")["out"].sum())(x)

    def twice(fn):
        return mx.grad(lambda x: mx.square(once(fn)(x)).sum())(X)

    got, want = twice(recompute(block)), twice(block)
    assert mx.allclose(got, want, rtol=1e-4, atol=1e-6)


def test_draws_are_those_of_the_first_run():
    def noisy(w, x):
        return x * mx.random.bernoulli(0.5, x.shape) * w

    grads = []
    for fn in (noisy, recompute(noisy)):
        with ps.rng.scope(mx.random.key(7)):
            grads.append(mx.grad(lambda w, fn=fn: fn(w, X).sum())(mx.ones(8)))
    assert mx.array_equal(*grads)


def test_parameters_read_from_elsewhere_are_refused_in_a_step():
    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create(W, transform)

    def captured(params, batch, rng):
        return ps.Mean.of(recompute(lambda x: x @ params["a"] + params["b"])(batch))

    with pytest.raises(ValueError, match=r"^recompute: fn .*\(8, 8\)"):
        ps.train_step(captured, transform)(state, X)

    def passed(params, batch, rng):
        hidden = batch @ params["a"]
        return ps.Mean.of(recompute(lambda b, x: x + b)(params["b"], hidden))

    ps.train_step(passed, transform)(state, X)


def test_the_argument_is_checked():
    with pytest.raises(TypeError, match="^recompute: fn"):
        recompute(3)
