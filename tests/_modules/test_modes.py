"""The mode of a layer whose class has its own way to set it."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps


class Inner:
    """An object that is no layer: `Module.train` does not reach it."""

    def __init__(self):
        self.active = True

    def __call__(self, x):
        return 2 * x if self.active else x


class ByTrain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.inner = mx.array(3.0), Inner()

    def train(self, mode=True):
        self.inner.active = bool(mode)
        return super().train(mode)

    def __call__(self, x):
        return self.inner(self.weight * x)


class ByMethod(ByTrain):
    train = nn.Module.train

    def _set_training_mode(self, mode):
        super()._set_training_mode(mode)
        self.inner.active = bool(mode)


class ByAttribute(ByTrain):
    train = nn.Module.train

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_training" and "inner" in vars(self):
            self.inner.active = bool(value)


@pytest.mark.parametrize("kind", [ByTrain, ByMethod, ByAttribute])
def test_the_mode_is_set_as_the_class_sets_it(kind):
    apply, params, _ = ps.functional(kind())
    assert apply(params, mx.array(1.0), train=False).item() == 3.0
    assert apply(params, mx.array(1.0), rng=mx.random.key(0)).item() == 6.0
    assert apply(params, mx.array(1.0), train=False).item() == 3.0
