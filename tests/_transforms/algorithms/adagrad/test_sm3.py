"""scale_by_sm3: one vector for each axis, computed by hand."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.transforms import scale_by_sm3
from tests.refusals import parts


def test_rows_and_columns_bound_the_sums_of_squares():
    transform = scale_by_sm3(b1=0.0, eps=0.0)
    state = transform.init({"w": mx.zeros((2, 2))})
    _, state = transform.update({"w": mx.array([[1.0, 2.0], [3.0, 0.0]])}, state)
    assert [v.tolist() for v in state.mu["w"]] == [[4.0, 9.0], [9.0, 4.0]]
    updates, state = transform.update({"w": mx.array([[0.0, 2.0], [0.0, 1.0]])}, state)
    # The minimum of row and column is [[4, 4], [9, 4]]; the new squares are added.
    assert [v.tolist() for v in state.mu["w"]] == [[8.0, 9.0], [9.0, 8.0]]
    np.testing.assert_allclose(updates["w"], [[0.0, 2 / np.sqrt(8)], [0.0, 1 / np.sqrt(5)]], 1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_up_to_one_axis_it_is_adagrad_with_momentum(shape):
    transform = scale_by_sm3(b1=0.5, eps=0.0)
    state = transform.init({"w": mx.zeros(shape)})
    for gradient in (3.0, -4.0):
        updates, state = transform.update({"w": mx.full(shape, gradient)}, state)
    assert [v.shape for v in state.mu["w"]] == [shape]
    np.testing.assert_allclose(updates["w"], np.full(shape, 0.5 * 0.5 * 1.0 + 0.5 * -0.8), 1e-6)


def test_the_order_of_a_dict_does_not_matter():
    transform = scale_by_sm3()
    first, second = mx.array([[1.0, 2.0]]), mx.array([[5.0], [6.0]])
    state = transform.init({"a": first, "b": second})
    straight, _ = transform.update({"a": first, "b": second}, state)
    turned, _ = transform.update({"b": second, "a": first}, state)
    assert mx.array_equal(straight["a"], turned["a"])
    assert mx.array_equal(straight["b"], turned["b"])


def test_zeros_stay_zero_without_epsilon_and_a_nan_shows():
    transform = scale_by_sm3(eps=0.0)
    state = transform.init({"w": mx.zeros(2)})
    updates, _ = transform.update({"w": mx.array([0.0, float("nan")])}, state)
    assert updates["w"][0].item() == 0
    assert mx.isnan(updates["w"][1]).item()


def test_updates_of_another_tree_are_refused():
    transform = scale_by_sm3()
    state = transform.init({"a": mx.zeros(2), "b": mx.zeros(2)})
    for updates, message in (
        ({"a": mx.zeros(2)}, "scale_by_sm3: state.mu.b .* state, not in"),
        ({"a": mx.zeros(2), "c": mx.zeros(2)}, "scale_by_sm3: state.mu.b .* state, not in"),
        (
            {"a": mx.zeros((2, 1)), "b": mx.zeros(2)},
            r"scale_by_sm3: state.mu.a.1 .* transform.init\(params\), not in",
        ),
        ({"a": mx.zeros(3), "b": mx.zeros(2)}, r"scale_by_sm3: state.mu.a.0 .*\(2,\) in the state"),
    ):
        with pytest.raises(ValueError, match=message):
            transform.update(updates, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, "scale_by_sm3: b1 ... 1, got 1.0"),
        ({"b2": 1.5}, "b2 ... 1, got 1.5"),
        ({"eps": float("nan")}, "eps ... finite, got nan"),
    ],
)
def test_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=parts(message)):
        scale_by_sm3(**options)
