"""add_noise: its variance, and its dependence on key, step and path."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.optimizers import noisy_sgd
from purestep.transforms import add_noise
from tests.refusals import parts

NAN = float("nan")


def noise(transform, updates, steps=1):
    state = transform.init(updates)
    for _ in range(steps):
        got, state = transform.update(updates, state)
    return ps.tree.map(lambda g, u: g - u, got, updates)


def test_noise_has_the_given_variance_and_decays():
    updates = {"w": mx.ones(20_000)}
    for steps, variance in ((1, 0.25), (4, 0.25 / 4**0.55)):
        drawn = noise(add_noise(0.25, 0.55, key=0), updates, steps)["w"]
        assert mx.var(drawn).item() == pytest.approx(variance, rel=0.05)
        assert abs(drawn.mean().item()) < 0.02


def test_noise_depends_on_the_key_the_step_and_the_path_alone():
    updates = {"a": mx.zeros(5), "b": mx.zeros(5)}
    first = noise(add_noise(1.0, 0.0, key=0), updates)
    assert mx.array_equal(first["a"], noise(add_noise(1.0, 0.0, key=mx.random.key(0)), updates)["a"])
    turned = noise(add_noise(1.0, 0.0, key=0), {"b": mx.zeros(5), "a": mx.zeros(5)})
    assert mx.array_equal(first["a"], turned["a"])
    others = (
        first["b"],
        noise(add_noise(1.0, 0.0, key=1), updates)["a"],
        noise(add_noise(1.0, 0.0, key=0), updates, 2)["a"],
    )
    for other in others:
        assert not mx.any(first["a"] == other).item()
    assert noise(add_noise(1.0, 0.0, key=0), {"none": None}) == {"none": None}


def test_noisy_sgd_descends_by_the_noisy_gradient():
    updates = {"w": mx.ones(3)}
    noisy, plain = noisy_sgd(0.5, 0.25, 0.55, mx.random.key(3)), add_noise(0.25, 0.55, mx.random.key(3))
    got, _ = noisy.update(updates, noisy.init(updates), updates)
    want, _ = plain.update(updates, plain.init(updates))
    assert mx.allclose(got["w"], -0.5 * want["w"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: add_noise(0.1, 0.5), TypeError, "add_noise: key ... integer, got None"),
        (
            lambda: add_noise(0.1, 0.5, mx.zeros(2)),
            ValueError,
            "add_noise: a key ... uint32 array ... mlx.core.float32 (2,)",
        ),
        (lambda: add_noise(-0.1, 0.5, 0), ValueError, "add_noise: eta ... 0, got -0.1"),
        (lambda: add_noise(0.1, NAN, 0), ValueError, "add_noise: gamma ... finite, got nan"),
    ],
)
def test_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
