"""The fused cross entropy of a GPU, on any device: first and second derivatives."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import hardware
from purestep._losses.core.fused import fused_cross_entropy
from purestep.losses import cross_entropy, token_logps

LOGITS = 3 * mx.random.normal((5, 7), key=mx.random.key(0))
TARGETS = mx.array([0, 6, 3, 3, 1])
COTANGENT = mx.random.normal((5,), key=mx.random.key(1))


FAST = mx.fast.cross_entropy


@mx.custom_function
def first_only(logits, targets):
    return FAST(logits, targets)


@first_only.vjp
def _(primals, cotangent, _):
    logits, targets = primals
    slope = mx.vjp(lambda x: FAST(x, targets), [logits], [cotangent])[1][0]
    return mx.stop_gradient(slope), mx.zeros_like(targets)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Imitate a GPU, whose fused operation has no second derivative: here it is zero."""
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    if not mx.cuda.is_available():
        monkeypatch.setattr(mx.fast, "cross_entropy", first_only)


def probabilities():
    shifted = np.exp(np.asarray(LOGITS, np.float64))
    return shifted / shifted.sum(-1, keepdims=True)


def by_hand():
    """Return losses, their gradient `g`, and the gradient of `|g|^2 / 2`: `J^T g`, J = diag(p) - p p^T."""
    p, cotangent = probabilities(), np.asarray(COTANGENT, np.float64)
    rows = np.arange(5), np.asarray(TARGETS)
    slope = p.copy()
    slope[rows] -= 1
    slope *= cotangent[:, None]
    of_slope = cotangent[:, None] * (p * slope - p * (p * slope).sum(-1, keepdims=True))
    return -np.log(p[rows]), slope, of_slope


@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_both_gradients_are_those_by_hand(compiled):
    def loss(logits):
        return (fused_cross_entropy(logits, TARGETS) * COTANGENT).sum()

    def both(logits):
        first = mx.grad(loss)
        return (
            fused_cross_entropy(logits, TARGETS),
            first(logits),
            mx.grad(lambda x: 0.5 * mx.square(first(x)).sum())(logits),
        )

    found = (mx.compile(both) if compiled else both)(LOGITS)
    for one, want in zip(found, by_hand(), strict=True):
        np.testing.assert_allclose(one, want, 1e-5, 1e-6)


def test_the_gradient_has_one_for_what_the_losses_count():
    slope = mx.grad(lambda x, c: (fused_cross_entropy(x, TARGETS) * c).sum())
    found = mx.grad(lambda c: (slope(LOGITS, c) * LOGITS).sum())(COTANGENT)
    p = probabilities()
    logits = np.asarray(LOGITS, np.float64)
    want = (p * logits).sum(-1) - logits[np.arange(5), np.asarray(TARGETS)]
    np.testing.assert_allclose(found, want, 1e-5, 1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_second_gradients_of_half_precision_are_in_its_dtype_and_near(dtype):
    def penalty(logits):
        slope = mx.grad(lambda x: (fused_cross_entropy(x, TARGETS).astype(mx.float32) * COTANGENT).sum())
        return 0.5 * mx.square(slope(logits).astype(mx.float32)).sum()

    found = mx.grad(penalty)(LOGITS.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found.astype(mx.float32)), by_hand()[2], 0.05, 0.01)


@pytest.mark.parametrize("loss", [cross_entropy, lambda x, y: -token_logps(x, y).mean()])
def test_a_gradient_penalty_compiles(loss):
    """MLX failed to compile this when the losses themselves are not a result."""

    def value(logits):
        found = loss(logits, TARGETS)
        return found.value if hasattr(found, "value") else found

    def penalized(logits):
        return value(logits) + mx.square(mx.grad(value)(logits)).sum()

    slope = mx.grad(penalized)
    np.testing.assert_allclose(mx.compile(slope)(LOGITS), slope(LOGITS), 1e-5, 1e-6)


def test_rows_can_be_mapped():
    one = mx.grad(lambda x, y: fused_cross_entropy(x[None], y[None]).sum())
    whole = mx.grad(lambda x: fused_cross_entropy(x, TARGETS).sum())(LOGITS)
    np.testing.assert_allclose(mx.vmap(one)(LOGITS, TARGETS), whole, 1e-6, 1e-7)


@pytest.mark.parametrize("loss", [cross_entropy, lambda x, y: -token_logps(x, y).mean()])
def test_the_losses_built_on_it_have_curvature(loss):
    def value(logits):
        found = loss(logits, TARGETS)
        return found.value if hasattr(found, "value") else found

    found = mx.grad(lambda x: 0.5 * mx.square(mx.grad(value)(x)).sum())(LOGITS)
    p = probabilities()
    slope = p.copy()
    slope[np.arange(5), np.asarray(TARGETS)] -= 1
    slope /= 5
    want = (p * slope - p * (p * slope).sum(-1, keepdims=True)) / 5
    np.testing.assert_allclose(found, want, 1e-5, 1e-7)
