"""The bridge from modules."""

import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep import tree
from purestep._core import hardware
from tests._modules.building import built, keeps_the_first_weights
from tests.trees import same_bits, snapshot


class Net(nn.Module):
    """Linear layers in a list, a batch norm, a dropout, a layer without parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm(6)
        self.drop = nn.Dropout(0.5)
        self.rest = [nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]

    def __call__(self, x):
        x = self.drop(self.norm(self.first(x)))
        for layer in self.rest:
            x = layer(x)
        return x


@pytest.fixture
def net():
    return built(Net)


X = mx.arange(12.0).reshape(3, 4) / 12


def test_params_and_model_state_carry_the_names_of_the_module(net):
    _, params, model_state = ps.functional(net)
    assert ps.tree.spec(params) == ps.tree.spec(net.trainable_parameters())
    assert ps.tree.paths(model_state) == ["norm.running_mean", "norm.running_var"]
    assert ps.functional(built(lambda: nn.Linear(2, 2)))[2] == {}


def test_dropout_is_a_function_of_the_key_and_off_without_one(net):
    apply, params, state = ps.functional(net)

    def out(key):
        return apply(params, X, rng=key, model_state=state)[0].tolist()

    assert out(mx.random.key(1)) == out(mx.random.key(1))
    assert out(mx.random.key(1)) != out(mx.random.key(2))
    assert out(None) == out(None)
    assert apply(params, X).tolist() == out(None)


def test_compiled_apply_equals_eager_and_leaves_no_tracers(net):
    apply, params, state = ps.functional(net)
    before = snapshot(net.parameters())

    def applied(params, x, key, state):
        return apply(params, x, rng=key, model_state=state)

    eager = applied(params, X, mx.random.key(1), state)
    compiled = mx.compile(applied)(params, X, mx.random.key(1), state)
    if hardware.on_gpu():  # its fused kernels round once instead of twice
        for one, other in zip(tree.leaves(compiled), tree.leaves(eager), strict=True):
            np.testing.assert_allclose(one, other, 1e-6, 1e-6)
    else:
        assert same_bits(compiled, eager)
    assert snapshot(net.parameters()) == before
    mx.grad(lambda p: applied(p, X, mx.random.key(1), state)[0].sum())(params)
    assert snapshot(net.parameters()) == before
    assert net.training


def test_batch_norm_statistics_go_in_and_come_out(net):
    apply, params, state = ps.functional(net)
    _, once = apply(params, X, rng=mx.random.key(0), model_state=state)
    _, twice = apply(params, X, rng=mx.random.key(0), model_state=once)
    assert ps.tree.alike(once, state)
    assert not same_bits(once, state)
    assert not same_bits(twice, once)
    hidden = net.first(X)
    assert mx.allclose(once["norm"]["running_mean"], 0.1 * hidden.mean(0))
    _, evaluated = apply(params, X, model_state=once)
    assert same_bits(evaluated, once)


def test_statistics_nobody_receives_are_refused(net):
    apply, params, _ = ps.functional(net)
    with pytest.raises(ValueError, match="apply: .* norm.running_mean, norm.running_var, .*model_state="):
        apply(params, X, rng=mx.random.key(0))
    assert net.norm.running_mean.tolist() == [0.0] * 6


def test_training_without_a_key_and_drawing_without_one_are_refused(net):
    apply, params, state = ps.functional(net)
    with pytest.raises(ValueError, match="apply: training .*key: pass rng=, or train=False"):
        apply(params, X, train=True, model_state=state)

    class Noisy(nn.Module):
        def __call__(self, x):
            return x + mx.random.normal(x.shape)

    apply, params, _ = ps.functional(Noisy())
    with pytest.raises(ValueError, match="apply: random .*without a key: pass rng="):
        apply(params, X)
    assert apply(params, X, rng=mx.random.key(0)).shape == X.shape


def test_the_module_is_restored_after_an_exception_in_the_forward_pass(net):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.calls = [mx.zeros(1)]
            self.note = "before"

        def __call__(self, x):
            self.inner(x)
            self.calls.append(x)
            self.note = "after"
            self.extra = x
            raise RuntimeError("broken")

    module = built(Broken)
    apply, params, _ = ps.functional(module)
    weight = module.inner.weight
    with pytest.raises(RuntimeError, match="broken"):
        mx.compile(lambda p, x: apply(p, x))(params, X)
    assert module.inner.weight is weight
    assert (len(module.calls), module.note, "extra" in module) == (1, "before", False)
    mx.eval(module.parameters())


def test_one_module_can_be_bridged_twice(net):
    first, params, state = ps.functional(net)
    second, other, _ = ps.functional(net)
    doubled = ps.tree.map(lambda p: 2 * p, other)
    a = first(params, X, model_state=state)[0]
    b = second(doubled, X, model_state=state)[0]
    assert not mx.array_equal(a, b)
    assert mx.array_equal(first(params, X, model_state=state)[0], a)


def test_writing_into_the_modules_arrays_does_not_reach_the_params(net):
    _, params, _ = ps.functional(net)
    before = snapshot(params)
    net.first.weight[0] = 9.0
    assert snapshot(params) == before


def test_frozen_weights_are_model_state_and_keep_their_place():
    module = built(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)))
    module.layers[0].freeze()
    apply, params, state = ps.functional(module)
    assert ps.tree.paths(params) == ["layers.2.weight", "layers.2.bias"]
    assert ps.tree.paths(state) == ["layers.0.weight", "layers.0.bias"]
    x = mx.ones((1, 3))
    assert mx.array_equal(apply(params, x), module(x))
    assert mx.array_equal(apply(params, x, model_state=state)[0], module(x))


def test_tied_weights_are_one_leaf_and_get_the_gradient_of_both_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def __call__(self, x):
            return self.b(self.a(x))

    apply, params, _ = ps.functional(built(Tied))
    assert ps.tree.paths(params) == ["a.weight"]
    x = mx.array([[1.0, 2.0, 3.0]])
    gradient = mx.grad(lambda p: apply(p, x).sum())(params)["a"]["weight"]
    expected = mx.grad(lambda w: ((x @ w.T) @ w.T).sum())(params["a"]["weight"])
    assert mx.allclose(gradient, expected)


def test_trained_params_go_back_into_the_module(net):
    apply, params, state = ps.functional(net)
    trained = ps.tree.map(lambda p: p + 1, params)
    net.update(trained)
    net.eval()
    assert mx.allclose(net(X), apply(trained, X, model_state=state)[0])


def test_params_of_another_module_are_refused_by_path(net):
    apply, params, _ = ps.functional(net)
    with pytest.raises(ValueError, match=r"apply: params .*lacks first\.bias, has wrong"):
        apply({**params, "first": {"weight": params["first"]["weight"]}, "wrong": mx.zeros(1)}, X)


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="functional: module .* mlx.nn.Module, got function"):
        ps.functional(lambda x: x)


def test_later_changes_to_the_module_do_not_reach_apply(net):
    apply, params, state = ps.functional(net)
    before = apply(params, X, model_state=state)[0].tolist()
    net.update(ps.tree.map(lambda p: p + 1, params))
    net.rest[0] = nn.Identity()
    assert apply(params, X, model_state=state)[0].tolist() == before


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(512, 512),
        lambda: nn.TransformerEncoderLayer(128, 4, 512),
        lambda: nn.Sequential(nn.Linear(512, 512), nn.gelu),
    ],
)
def test_apply_does_not_keep_the_first_weights_alive(build):
    assert not keeps_the_first_weights(build)


def test_a_module_that_cannot_be_copied_is_borrowed_and_restored():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.lock = threading.Lock()

        def __call__(self, x):
            with self.lock:
                return self.inner(x)

    module = built(Locked)
    with pytest.warns(UserWarning, match="lock is a lock, which cannot be copied"):
        apply, params, _ = ps.functional(module)
    weight = module.inner.weight
    assert mx.array_equal(mx.compile(lambda p, x: apply(p, x))(params, X), module(X))
    assert module.inner.weight is weight


def test_functions_that_lead_back_to_the_module_use_the_parameters_given():
    class Closing(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.by_closure = lambda h: self.embedding.as_linear(h)

        def __call__(self, tokens):
            return self.by_closure(self.embedding(tokens))

    class Bound(Closing):
        def __init__(self):
            super().__init__()
            self.by_closure = self.read

        def read(self, h):
            return self.embedding.as_linear(h)

    for build in (Closing, Bound):
        apply, params, _ = ps.functional(built(build))
        weight = params["embedding"]["weight"]
        expected = mx.grad(lambda w: (w[mx.array([1])] @ w.T).sum())(weight)
        got = mx.grad(lambda p, apply=apply: apply(p, mx.array([1])).sum())(params)["embedding"]["weight"]
        assert mx.allclose(got, expected)


def test_parameters_of_which_each_process_has_a_part_are_refused():
    with ps.rng.scope(mx.random.key(0)):
        whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    whole.layers[1] = nn.FullyShardedModule(whole.layers[1])
    with pytest.raises(
        ValueError, match=r"functional: module must hold whole parameters, got layers\.1 from"
    ):
        ps.functional(whole)


def test_arrays_are_taken_by_name_in_any_order_of_the_keys():
    # Two arrays of one shape: a later call that listed them in another order would swap them unnoticed.
    apply, _, _ = ps.functional(Two())
    x, y = {"x": mx.zeros(3), "y": mx.ones(3)}, {"y": mx.ones(3), "x": mx.zeros(3)}
    assert apply(x).tolist() == apply(y).tolist() == [-1.0, -1.0, -1.0]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.y = mx.zeros(3), mx.zeros(3)

    def __call__(self):
        return self.x - self.y


def test_a_tree_that_does_not_fit_is_refused_after_one_that_does():
    apply, params, _ = ps.functional(built(lambda: nn.Linear(3, 2)))
    apply(params, mx.ones(3))
    with pytest.raises(ValueError, match=r"params.bias has shape \(3,\)"):
        apply(params | {"bias": mx.zeros(3)}, mx.ones(3))
    with pytest.raises(ValueError, match="lacks bias"):
        apply({"weight": params["weight"]}, mx.ones(3))
    assert apply({name: x.astype(mx.float16) for name, x in params.items()}, mx.ones(3)).shape == (2,)


def test_a_number_in_the_model_state_stands_for_an_array():
    apply, params, held = ps.functional(built(lambda: nn.BatchNorm(3)))
    x, given = mx.ones((2, 3)), {"running_mean": 0.5, "running_var": 4.0}
    want = apply(params, x, model_state={name: mx.full(3, given[name]) for name in held}, train=False)
    assert mx.array_equal(apply(params, x, model_state=given, train=False)[0], want[0])
