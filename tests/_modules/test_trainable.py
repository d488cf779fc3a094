"""`functional(trainable=)`: any subset of the arrays is trained; the others are held."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from tests._modules.building import built

X = mx.random.normal((4, 64), key=mx.random.key(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(64, 64), nn.Linear(64, 64)]
        self.norm = nn.LayerNorm(64)

    def __call__(self, x):
        for layer in self.layers:
            x = mx.tanh(layer(x))
        return self.norm(x)


@pytest.mark.parametrize(
    ("trainable", "paths"),
    [
        ("norm.*", ["norm.bias", "norm.weight"]),
        (("*.bias", "layers.1.weight"), ["layers.0.bias", "layers.1.bias", "layers.1.weight", "norm.bias"]),
    ],
)
def test_the_arrays_that_match_are_the_params(trainable, paths):
    net = built(Net, seed=1)
    net.freeze()
    apply, params, held = ps.functional(net, trainable=trainable)
    assert sorted(ps.tree.paths(params)) == paths
    assert sorted(ps.tree.paths(params) + ps.tree.paths(held)) == sorted(
        ps.tree.paths(ps.functional(net, trainable="*")[1])
    )
    assert mx.array_equal(apply(params, X), net(X))
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(lambda p, batch, rng: ps.Mean.of(mx.square(apply(p, batch) - 1)), transform)
    state, _ = step(ps.TrainState.create(params, transform), X)
    moved = [
        path
        for path, leaf in ps.tree.items(state.params)
        if mx.any(leaf != dict(ps.tree.items(params))[path])
    ]
    assert sorted(moved) == paths


def test_mistakes_are_refused():
    net = built(Net, seed=1)
    with pytest.raises(ValueError, match=r"^functional: .*'norms\.\*' matches none .*norm\.weight"):
        ps.functional(net, trainable="norms.*")
    with ps.rng.scope(mx.random.key(0)):
        nn.quantize(net, group_size=32)
    with pytest.raises(ValueError, match=r"^functional: trainable .*layers\.0\.weight .*uint32.*quantized"):
        ps.functional(net, trainable="layers.*")
    assert ps.functional(net, trainable="norm.*")[1]
