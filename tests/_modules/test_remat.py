"""`functional(remat=)`: the same values, gradients and draws with less memory; patterns are checked."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from tests._modules.building import built

X = mx.random.normal((64, 16), key=mx.random.key(5))


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(width), nn.Linear(width, 64), nn.Linear(64, width)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x, scale="plain", *, offset=None):
        out = self.down(self.dropout(nn.gelu(self.up(self.norm(x)))))
        return x + out + (0 if offset is None else offset), scale


class Net(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.layers = [Block() for _ in range(depth)]
        self.head = nn.Linear(16, 1)

    def __call__(self, x):
        for number, layer in enumerate(self.layers):
            x, _ = layer(x, "plain", offset=x * number)
        return self.head(x)


def gradient(net, remat, *, rng=None, compiled=False):
    apply, params, _ = ps.functional(net, remat=remat)
    fn = mx.value_and_grad(lambda params: mx.square(apply(params, X, rng=rng)).mean())
    return (mx.compile(fn) if compiled else fn)(params)


@pytest.mark.parametrize("remat", ["layers.*", ["layers.0", "layers.2*"], lambda path: path.endswith("up")])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_gradients_and_draws_are_the_same(remat, compiled):
    net = built(Net, seed=1)
    key = mx.random.key(3)
    value, grads = gradient(net, (), rng=key)
    again, regrads = gradient(net, remat, rng=key, compiled=compiled)
    assert mx.allclose(value, again, rtol=1e-6)
    for (path, a), b in zip(ps.tree.items(grads), ps.tree.leaves(regrads), strict=True):
        assert (mx.linalg.norm(a - b) <= 1e-5 * mx.linalg.norm(a)).item(), path


@pytest.mark.parametrize(
    "remat",
    ["layers.*", lambda path: path in ("layers.0", "layers.2"), "layers.*.attention"],
    ids=["every block", "every second block", "attention"],
)
def test_policies_on_a_transformer_with_dropout(remat):
    net: Any = built(lambda: nn.TransformerEncoder(4, 16, 2, dropout=0.3), seed=1)
    x, key = X.reshape(4, 16, 16), mx.random.key(3)

    def outcome(remat, key):
        apply, params, _ = ps.functional(net, remat=remat)
        out = apply(params, x, None, rng=key)
        return out, mx.grad(lambda params: mx.square(apply(params, x, None, rng=key)).mean())(params)

    out, plain = outcome((), key)
    again, recomputed = outcome(remat, key)
    assert mx.array_equal(out, again)
    for (path, a), b in zip(ps.tree.items(plain), ps.tree.leaves(recomputed), strict=True):
        assert (mx.linalg.norm(a - b) <= 1e-6 * mx.linalg.norm(plain["ln"]["bias"])).item(), path
    other, _ = outcome(remat, mx.random.key(4))
    assert not mx.allclose(out, other, atol=1e-2)  # Dropout draws from the key


@pytest.mark.parametrize("compiled", [False, True])
def test_the_activations_of_a_block_are_not_kept(compiled):
    net = built(lambda: Net(16), seed=1)

    def peak(remat):
        apply, params, _ = ps.functional(net, remat=remat)
        fn = mx.grad(lambda params: mx.square(apply(params, mx.tile(X, (16, 1)))).mean())
        fn = mx.compile(fn) if compiled else fn
        mx.eval(fn(params))
        mx.synchronize()
        base = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(fn(params))
        return mx.get_peak_memory() - base

    assert peak("layers.*") < 0.45 * peak(())


def test_a_recomputed_step_trains():
    net = built(Net, seed=1)
    transform = ps.optimizers.adam(1e-2)
    losses = []
    for remat in ((), "layers.*"):
        apply, params, _ = ps.functional(net, remat=remat)
        step = ps.train_step(
            lambda params, batch, rng, apply=apply: ps.Mean.of(mx.square(apply(params, batch, rng=rng))),
            transform,
            microbatches=2,
        )
        state = ps.TrainState.create(params, transform)
        for _ in range(3):
            state, metrics = step(state, X)
        losses.append(metrics["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_gradient_per_example_by_vmap():
    net = built(Net, seed=1)
    per_example = []
    for remat in ((), "layers.*"):
        apply, params, _ = ps.functional(net, remat=remat)
        fn = mx.grad(lambda params, x, apply=apply: mx.square(apply(params, x[None])).sum())
        per_example.append(mx.vmap(fn, (None, 0))(params, X[:3]))
    for a, b in zip(*map(ps.tree.leaves, per_example), strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_outermost_of_nested_matches_is_recomputed():
    calls = []

    class Counting(Block):
        def __call__(self, x, *args, **kwargs):
            calls.append("block")
            return super().__call__(x, *args, **kwargs)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Counting()

        def __call__(self, x):
            return self.block(x)[0]

    net = built(lambda: nn.Sequential(Outer()), seed=1)
    apply, params, _ = ps.functional(net, remat="*")
    fn = mx.grad(lambda params: apply(params, X).sum())
    mx.eval(fn(params))
    calls.clear()
    mx.eval(fn(params))
    assert len(calls) == 2  # the first run and one recomputation


def test_patterns_are_checked():
    net = built(Net, seed=1)
    with pytest.raises(ValueError, match=r"^functional: .*'blocks\.\*' matches none .*layers\.0"):
        ps.functional(net, remat="blocks.*")
    with pytest.raises(ValueError, match="^functional: remat .*none"):
        ps.functional(net, remat=lambda path: False)
    with pytest.raises(TypeError, match="^functional: .*pattern"):
        ps.functional(net, remat=[3])


def test_the_users_module_keeps_its_classes():
    net = built(Net, seed=1)
    ps.functional(net, remat="layers.*")
    assert type(net.layers[0]) is Block


def test_a_constant_mask_needs_no_gradient(monkeypatch):
    """Some of MLX's kernels on a GPU refuse the gradient of a mask."""
    mask, weight = mx.array([[0.0, -1e9], [0.0, 0.0]]), mx.array([[1.0, 2.0], [3.0, 4.0]])
    original = mx.vjp

    def without_masks(fun, primals, cotangents):
        if any(x.shape == (2, 2) and x is not primals[0] for x in primals[1:]):
            raise ValueError("Does not support VJP with respect to mask")
        return original(fun, primals, cotangents)

    def loss(weight, again):
        block = ps.layers.recompute(lambda weight, mask: mx.softmax(weight + mask, axis=-1) * weight)
        return block(weight, mask).sum() if again else (mx.softmax(weight + mask, axis=-1) * weight).sum()

    expected = mx.grad(loss)(weight, False)
    monkeypatch.setattr(mx, "vjp", without_masks)
    assert mx.allclose(mx.grad(loss)(weight, True), expected)


def test_a_module_may_have_more_arrays_than_mlx_takes_keyword_arguments():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.biases = [mx.zeros(2) for _ in range(1100)]

        def __call__(self, x):
            return sum(self.biases, self.layer(x))

    model = built(Wide, seed=0)
    plain, params, _ = ps.functional(model)
    recomputed, _, _ = ps.functional(model, remat="layer")
    x = mx.ones((1, 2))
    assert mx.array_equal(recomputed(params, x), plain(params, x))
    found = mx.grad(lambda params: recomputed(params, x).sum())(params)
    assert mx.array_equal(found["layer"]["weight"], mx.ones((2, 2)))
    assert mx.array_equal(found["biases"][-1], mx.ones(2))


def test_sets_in_a_module_may_come_back_in_another_order():
    class Tagged(Net):
        def __init__(self):
            super().__init__()
            self.tags = {7, 15}  # their hashes collide: they come in the order opposite to that of insertion

    net = built(Tagged, seed=1)
    assert list(set(list(net.tags))) != list(net.tags)  # noqa: C414
    value, _ = gradient(net, "layers.0", rng=mx.random.key(3))
    assert mx.isfinite(value)
