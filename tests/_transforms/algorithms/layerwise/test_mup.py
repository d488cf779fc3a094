"""mup: the learning rate of a narrow model suits a wide one."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.optimizers import mup
from tests._transforms.algorithms.layerwise.language_model import PARAMS
from tests.refusals import parts


def test_matrices_learn_slower_and_all_else_at_the_rate_itself():
    transform = mup(ps.optimizers.adam(0.5), width_mult=8)
    got, _ = transform.update(PARAMS, transform.init(PARAMS), PARAMS)
    rates = {path: -u.astype(mx.float32).mean().item() for path, u in ps.tree.items(got)}
    assert rates == {
        "embed_tokens.weight": pytest.approx(0.5),
        "layers.0.attention.weight": pytest.approx(0.5 / 8),
        "layers.0.attention.bias": pytest.approx(0.5),
        "layers.0.norm": pytest.approx(0.5),
        "lm_head.weight": pytest.approx(0.5 / 8),
    }


def moved(width, make):
    """Return the mean change in one step of the outputs of two layers with muP variances."""
    params = {
        "embed": mx.random.normal((width, 16), key=mx.random.key(0)) / 4,
        "hidden": mx.random.normal((width, width), key=mx.random.key(1)) / width**0.5,
        "out": mx.random.normal((8, width), key=mx.random.key(2)) / width,
    }
    inputs = mx.random.normal((32, 16), key=mx.random.key(3))
    targets = mx.random.normal((32, 8), key=mx.random.key(4))

    def forward(params):
        hidden = (inputs @ params["embed"].T) @ params["hidden"].T
        return hidden, hidden @ params["out"].T

    gradients = mx.grad(lambda params: mx.square(forward(params)[1] - targets).mean())(params)
    transform = make(width)
    updates, _ = transform.update(gradients, transform.init(params), params)
    before, after = forward(params), forward(ps.apply_updates(params, updates))
    return [mx.abs(a - b).mean().item() for a, b in zip(after, before, strict=True)]


def test_one_step_moves_activations_alike_whatever_the_width():
    narrow = moved(64, lambda width: ps.optimizers.adam(1e-2))
    wide = moved(1024, lambda width: mup(ps.optimizers.adam(1e-2), width / 64))
    np.testing.assert_allclose(wide, narrow, rtol=0.5)
    plain = moved(1024, lambda width: ps.optimizers.adam(1e-2))
    assert min(np.divide(plain, narrow)) > 8  # the width is 16 times as large


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mup(ps.optimizers.adam(0.1), 0.0), ValueError, "width_mult ... 0, got 0.0"),
        (lambda: mup(ps.optimizers.adam, 2.0), TypeError, "GradientTransform, got <function adam"),
    ],
)
def test_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
