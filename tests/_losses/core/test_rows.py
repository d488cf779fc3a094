"""Losses in blocks of rows: the values and gradients of one block, in any number of them."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import hardware
from purestep._layers import blocks
from purestep._losses.core import rows as loss_rows
from purestep.losses import cross_entropy, token_logps

ROWS, CLASSES = (3, 7), 96


@pytest.fixture
def small(monkeypatch):
    """Blocks of four rows: six of them, of which the last has one row."""
    monkeypatch.setattr(blocks, "ELEMENTS", 4 * CLASSES)
    monkeypatch.setattr(hardware, "on_gpu", lambda: False)


def drawn():
    logits = 4 * mx.random.normal((*ROWS, CLASSES), key=mx.random.key(0))
    return logits, mx.random.randint(0, CLASSES, ROWS, key=mx.random.key(1))


def by_hand(logits, targets):
    """Return the mean loss and its gradient in float64."""
    x = np.asarray(logits, np.float64).reshape(-1, CLASSES)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows = np.arange(len(x)), np.asarray(targets).reshape(-1)
    loss = -np.log(p[rows]).mean()
    p[rows] -= 1
    return loss, (p / len(x)).reshape(logits.shape)


def test_blocks_have_the_rows_in_order(small):
    seen = []

    def losses(logits, targets):
        seen.append(logits.shape)
        return logits[..., 0] + targets

    logits, targets = drawn()
    found = loss_rows.in_blocks(losses, logits, targets)
    assert seen == [(4, CLASSES)] * 5 + [(1, CLASSES)]
    assert mx.array_equal(found, logits[..., 0] + targets)


@pytest.mark.parametrize("options", [{}, {"ignore_index": 3}, {"label_smoothing": 0.1, "z_loss": 1e-3}])
def test_a_loss_and_its_gradients_are_those_of_one_block(small, options, monkeypatch):
    logits, targets = drawn()

    def derived():
        slope = mx.grad(lambda x: cross_entropy(x, targets, **options).value)
        second = mx.grad(lambda x: mx.square(slope(x)).sum())
        mapped = mx.vmap(lambda x, y: cross_entropy(x, y, **options).value)(logits, targets)
        return cross_entropy(logits, targets, **options).value, slope(logits), second(logits), mapped

    found = derived()
    monkeypatch.setattr(blocks, "ELEMENTS", 1 << 30)
    for one, other in zip(found, derived(), strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)


def test_large_logits_have_the_loss_and_gradient_of_the_formula():
    """Enough for several blocks and for exponentials of their own, with a length that has no divisors."""
    with mx.stream(mx.cpu):
        for classes in (8192, 8191):
            logits = 4 * mx.random.normal((130, classes), key=mx.random.key(0))
            targets = mx.random.randint(0, classes, (130,), key=mx.random.key(1))
            x = np.asarray(logits, np.float64)
            p = np.exp(x - x.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            rows = np.arange(130), np.asarray(targets)
            losses = -np.log(p[rows])
            p[rows] -= 1
            loss, slope = mx.value_and_grad(lambda x, y=targets: cross_entropy(x, y).value)(logits)
            assert abs(loss.item() / losses.mean() - 1) < 1e-6
            np.testing.assert_allclose(np.asarray(slope) * 130, p, 4e-6, 1e-7)
            np.testing.assert_allclose(token_logps(logits, targets), -losses, 2e-6, 1e-6)
