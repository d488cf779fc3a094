"""Cosines against optax, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import cosine_distance, cosine_similarity
from tests._losses.recorded import cases, check_contract, compare


@pytest.mark.parametrize("case", cases("cosine_similarity"))
def test_similarity_is_that_of_optax(case):
    compare(case, cosine_similarity)


@pytest.mark.parametrize("case", cases("cosine_distance"))
def test_distance_is_that_of_optax(case):
    compare(case, cosine_distance, epsilon=40.0)


@pytest.mark.parametrize("loss", [cosine_similarity, cosine_distance])
def test_the_contract_of_every_loss_holds(loss):
    check_contract(loss, *mx.random.normal((2, 6, 3), key=mx.random.key(0)))


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_neither_huge_nor_tiny_vectors_lose_their_direction(size, epsilon):
    first = mx.array([[3.0, 4.0]]) * size
    expected = 0.6 if size > 1 or not epsilon else 0
    value = cosine_similarity(first, mx.array([[1.0, 0.0]]), epsilon=epsilon).value
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-20)


def test_a_vector_of_zeros_has_a_cosine_and_a_gradient_of_zero():
    value, slope = mx.value_and_grad(lambda x: cosine_similarity(x, mx.ones((1, 2))).value)(mx.zeros((1, 2)))
    assert value.item() == 0
    np.testing.assert_array_equal(slope, np.zeros((1, 2)))


@pytest.mark.parametrize("loss", [cosine_similarity, cosine_distance])
def test_bad_arguments_are_refused(loss):
    with pytest.raises(
        ValueError, match=rf"^{loss.__name__}: targets .* predictions' shape \(2, 3\), got \(3,\)"
    ):
        loss(mx.zeros((2, 3)), mx.zeros((3,)))
    with pytest.raises(ValueError, match=f"^{loss.__name__}: epsilon .* 0, got -1"):
        loss(mx.zeros((2, 3)), mx.zeros((2, 3)), epsilon=-1)
    with pytest.raises(ValueError, match=rf"^{loss.__name__}: predictions .* one feature, got \(2, 0\)"):
        loss(mx.zeros((2, 0)), mx.zeros((2, 0)))
