"""Functions that a model compiles with `shapeless=True` are left as they are for other callers and shapes."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from tests._modules.building import built


@partial(mx.compile, shapeless=True)
def gated(gate, x):
    return nn.silu(gate) * nn.gelu_approx(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def __call__(self, x):
        return gated(self.a(x), self.b(x))


def test_other_shapes_run_within_apply_and_outside():
    net = built(Net, seed=1)
    apply, params, _ = ps.functional(net)
    for rows in (2, 3):
        x = mx.ones((rows, 8))
        assert mx.allclose(apply(params, x), net(x), atol=1e-6)
        mx.eval(mx.grad(lambda params, x=x: apply(params, x).sum())(params))
