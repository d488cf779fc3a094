"""scale_by_polyak: the step from the loss and the norm."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.transforms import scale_by_polyak
from tests.refusals import parts

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "value", "step"),
    [
        ({}, 1.0, 0.04),
        ({"f_min": 0.5}, 1.0, 0.02),
        ({"eps": 25.0}, 1.0, 0.02),
        ({"max_learning_rate": 0.01}, 1.0, 0.01),
        ({}, -1.0, -0.04),
        ({"variant": "sps+"}, -1.0, 0.0),
        ({}, NAN, NAN),
    ],
)
def test_polyaks_step_is_the_gap_over_the_squared_norm(options, value, step):
    updates = {"a": mx.array(3.0), "b": mx.array([0.0, 4.0])}
    got, _ = scale_by_polyak(**options).update(updates, (), value=mx.array(value))
    np.testing.assert_allclose(got["a"], 3 * step, 1e-6)
    np.testing.assert_allclose(got["b"][1], 4 * step, 1e-6)


def test_polyak_needs_a_value_and_gives_zero_for_tiny_gradients():
    with pytest.raises(ValueError, match="scale_by_polyak: value .*needed"):
        scale_by_polyak().update({"w": mx.ones(2)}, ())
    for gradient in (mx.zeros(2), mx.full(2, 1e-9)):
        got, _ = scale_by_polyak().update({"w": gradient}, (), value=mx.array(1.0))
        assert mx.array_equal(got["w"], mx.zeros(2))


def test_polyak_receives_the_loss_through_a_chain():
    transform = ps.chain(scale_by_polyak(), ps.transforms.scale(-1.0))
    got, _ = transform.update({"w": mx.array(2.0)}, transform.init({}), value=mx.array(1.0))
    assert got["w"].item() == -0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_polyak(NAN), "scale_by_polyak: f_min ... finite, got nan"),
        (lambda: scale_by_polyak(eps=-1.0), "scale_by_polyak: eps ... 0, got -1.0"),
        (lambda: scale_by_polyak(variant="max"), "scale_by_polyak: variant ... sps, sps+, got 'max'"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
