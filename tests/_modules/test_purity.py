"""Changes by a forward pass are refused with their path, and changes to the module do not affect apply."""

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from tests._modules.building import built, keeps_the_first_weights

X = mx.arange(8.0).reshape(2, 4) / 8


@dataclass
class Settings:
    width: int = 4
    scales: list = field(default_factory=lambda: [1.0])


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)


class Private(Base):
    def __init__(self):
        super().__init__()
        self._mean = mx.zeros(4)

    def __call__(self, x):
        self._mean = 0.9 * self._mean + x.mean(0)
        return self.inner(x)


class InPlace(Private):
    def __call__(self, x):
        self._mean[:] = x.mean(0)
        return self.inner(x)


class Key(Base):
    def __init__(self):
        super().__init__()
        self._key = mx.random.key(0)

    def __call__(self, x):
        self._key, key = mx.random.split(self._key)
        return self.inner(x) + mx.random.normal(x.shape, key=key)


class Cache(Base):
    def __init__(self):
        super().__init__()
        self.seen = None

    def __call__(self, x):
        self.seen = x if self.seen is None else mx.concatenate([self.seen, x])
        return self.inner(x)


class Absent(Base):
    def __call__(self, x):
        self.mean = x.mean(0)
        return self.inner(x)


class Counter(Base):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.inner(x) / self.calls


class Listed(Base):
    def __init__(self):
        super().__init__()
        self._seen = []

    def __call__(self, x):
        self._seen.append(x)
        return self.inner(x)


class InObject(Base):
    def __init__(self):
        super().__init__()
        self.settings: Any = Settings()
        self.settings.mean = mx.zeros(4)

    def __call__(self, x):
        self.settings.mean = self.settings.mean + x.mean(0)
        return self.inner(x) + self.settings.mean


class InDeque(Base):
    def __init__(self):
        super().__init__()
        self.recent, self.by_name = deque(maxlen=2), defaultdict(list)

    def __call__(self, x):
        self.recent.append(x.mean())
        return self.inner(x)


class InClosure(Base):
    def __init__(self):
        super().__init__()
        count = 0

        def call(x):
            nonlocal count
            count += 1
            return self.inner(x)

        self.call = call

    def __call__(self, x):
        return self.call(x)


class Trained(Base):
    def __call__(self, x):
        self.inner.weight = self.inner.weight / 2
        return self.inner(x)


class TrainedInPlace(Base):
    def __call__(self, x):
        self.inner.weight[0] = 0
        return self.inner(x)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Private, "_mean"),
        (InPlace, "_mean"),
        (Key, "_key"),
        (Cache, "seen"),
        (Absent, "mean"),
        (Counter, "calls"),
        (Listed, "_seen"),
        (InObject, "settings.mean"),
        (InDeque, "recent"),
        (InClosure, "call.count"),
        (Trained, "inner.weight"),
        (TrainedInPlace, "inner.weight"),
    ],
)
def test_state_that_nobody_receives_is_refused_by_path(kind, path):
    module = built(kind)
    apply, params, state = ps.functional(module)
    for _ in range(2):  # the first call has no effect on the second
        with pytest.raises(ValueError, match=rf"^apply: .* {path}\b.*model_state"):
            apply(params, X, rng=mx.random.key(1), model_state=state)
    assert apply is not None
    mx.eval(params)


def test_a_change_that_later_calls_do_not_depend_on_is_discarded_if_asked():
    apply, params, _ = ps.functional(built(Cache), discard="seen")
    first = apply(params, X)
    assert mx.array_equal(first, apply(params, X))
    apply, params, _ = ps.functional(built(Counter), discard=["calls"])
    assert mx.array_equal(apply(params, X), apply(params, X))


class WithSettings(Base):
    def __init__(self):
        super().__init__()
        self.settings, self.scale = Settings(), 2.0
        self.act: Any = partial(nn.leaky_relu, negative_slope=0.5)
        self.table = {"gain": [mx.ones(4)]}

    def __call__(self, x):
        return self.scale * self.settings.scales[0] * self.act(self.inner(x)) * self.table["gain"][0]


def test_nothing_done_to_the_module_later_reaches_apply():
    module = built(WithSettings)
    apply, params, _ = ps.functional(module)
    before = apply(params, X)
    module.scale, module.settings.width = 7.0, 3
    module.settings.scales[0] = 5.0
    module.act = nn.relu
    module.inner = built(lambda: nn.Linear(4, 4, bias=False))
    module.table["gain"][0] = mx.zeros(4)
    assert mx.array_equal(apply(params, X), before)


@pytest.mark.filterwarnings("ignore:functional. lock")
def test_nor_to_a_module_that_is_borrowed():
    class Locked(WithSettings):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    module = built(Locked)
    apply, params, _ = ps.functional(module)
    before = apply(params, X)
    module.scale, module.inner = 7.0, built(lambda: nn.Linear(4, 4, bias=False))
    assert mx.array_equal(apply(params, X), before)
    assert module.scale == 7.0
    assert "bias" not in module.inner


def test_nor_what_is_done_to_a_list_that_the_forward_pass_returns():
    class Returning(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scales = mx.array(3.0), [2.0]

        def __call__(self, x):
            return sum(self.scales) * self.weight * x, self.scales

    apply, params, _ = ps.functional(Returning())
    found = []
    for _ in range(3):
        out, scales = apply(params, mx.array(1.0))
        found.append(out.item())
        scales.append(5.0)
    assert found == [6.0, 6.0, 6.0]


def test_a_module_with_settings_frees_its_first_weights():
    class Big(WithSettings):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(512, 512)

    assert not keeps_the_first_weights(Big)


def test_arguments_are_left_as_they_were():
    class Writes(Base):
        def __call__(self, x, more):
            x[:, 0] = 0
            more["y"][:] = 1
            return self.inner(x)

    apply, params, _ = ps.functional(built(Writes))
    x, more = mx.ones((2, 4)), {"y": mx.zeros(3)}
    apply(params, x, more)
    assert mx.array_equal(x, mx.ones((2, 4)))
    assert mx.array_equal(more["y"], mx.zeros(3))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)

    def __call__(self, x):
        return self.head(self.backbone(x))


def test_a_part_in_evaluation_mode_stays_in_it():
    module = built(Parts)
    module.backbone.freeze()
    module.backbone.eval()
    apply, params, state = ps.functional(module)
    got, left = apply(params, X, rng=mx.random.key(0), model_state=state)
    assert mx.allclose(got, module(X))
    for path, array in ps.tree.items(left):
        assert mx.array_equal(array, dict(ps.tree.items(state))[path])


def test_a_module_wholly_in_evaluation_mode_trains_with_a_key():
    module = built(Parts)
    module.eval()
    apply, params, state = ps.functional(module)
    outs = [apply(params, X, rng=mx.random.key(i), model_state=state)[0] for i in range(2)]
    assert not mx.array_equal(*outs)


class Codec(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def test_a_module_with_several_entry_points():
    module = built(Codec)
    apply, params, _ = ps.functional(module)
    z = apply(params, X, method="encode")
    assert mx.array_equal(z, module.encode(X))
    assert mx.array_equal(apply(params, z, method=Codec.decode), module(X))
    with pytest.raises(ValueError, match="apply: method .* method of Codec, got 'decoder_'"):
        apply(params, z, method="decoder_")


def test_each_entry_point_is_looked_at_for_writes():
    class Writes(Private):
        def other(self, x):
            self._mean[:] = x.mean(0)
            return x

        def __call__(self, x):
            return self.inner(x)

    apply, params, _ = ps.functional(built(Writes))
    apply(params, X)
    with pytest.raises(ValueError, match="apply: .* _mean, an array"):
        apply(params, X, method="other")


def test_params_of_another_shape_are_refused_by_path():
    apply, params, _ = ps.functional(built(Codec))
    params["decoder"]["bias"] = mx.zeros(3)
    with pytest.raises(ValueError, match=r"apply: params.decoder.bias .*\(3,\), \(4,\) in the module"):
        apply(params, X)
