"""Contrastive losses against optax and torch, recorded in float64."""

import functools

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import info_nce, ntxent, triplet_margin_loss
from tests._losses.recorded import cases, check_contract, compare
from tests.refusals import parts

EMBEDDINGS = mx.random.normal((5, 3), key=mx.random.key(0))
LABELS = mx.array([0, 1, 0, 1, 0])


@pytest.mark.parametrize("case", cases("ntxent"))
def test_ntxent_is_that_of_optax(case):
    compare(case, ntxent, **({} if "default" in case else {"temperature": 0.5}))


@pytest.mark.parametrize("case", cases("info_nce"))
def test_info_nce_is_cross_entropy_of_torch_over_cosines(case):
    compare(case, info_nce, temperature=0.2, symmetric="symmetric" in case)


@pytest.mark.parametrize("case", cases("triplet_margin_loss"))
def test_triplets_are_those_of_optax(case):
    compare(case, triplet_margin_loss)


@pytest.mark.parametrize("case", cases("triplet_margin_loss_cubic"))
def test_another_norm_is_the_formula_in_float64(case):
    compare(case, triplet_margin_loss, norm_degree=3, margin=0.5)


def test_the_contract_of_every_loss_holds_for_triplets():
    check_contract(triplet_margin_loss, *mx.random.normal((3, 6, 3), key=mx.random.key(0)))


@pytest.mark.parametrize(
    "loss", [lambda x, w: ntxent(x, LABELS, weights=w), lambda x, w: info_nce(x, x[::-1], weights=w)]
)
def test_a_row_of_zero_weight_is_neither_positive_nor_negative(loss):
    kept = mx.array([1.0, 1.0, 0.0, 1.0, 1.0])
    poisoned = mx.where(mx.array([0, 0, 1, 0, 0])[:, None] == 1, mx.nan, EMBEDDINGS)
    value, slope = mx.value_and_grad(lambda x: loss(x, kept).value)(poisoned)
    assert mx.isfinite(value).item()
    np.testing.assert_array_equal(slope[2], np.zeros(3))


def test_without_the_row_it_is_the_loss_of_the_others():
    rows = mx.array([0, 1, 3, 4])
    kept = mx.array([True, True, False, True, True])
    for masked, fewer in (
        (ntxent(EMBEDDINGS, LABELS, weights=kept), ntxent(EMBEDDINGS[rows], LABELS[rows])),
        (
            info_nce(EMBEDDINGS, mx.sin(EMBEDDINGS), weights=kept),
            info_nce(EMBEDDINGS[rows], mx.sin(EMBEDDINGS[rows])),
        ),
    ):
        np.testing.assert_allclose(masked.total, fewer.total, 1e-5)
        assert masked.weight.item() == fewer.weight.item()


@pytest.mark.parametrize("labels", [mx.arange(5), mx.zeros((5,), mx.int32)])
def test_without_pairs_or_without_negatives_there_is_no_loss_and_no_nan(labels):
    value, slope = mx.value_and_grad(lambda x: ntxent(x, labels).value)(EMBEDDINGS)
    assert value.item() == 0
    np.testing.assert_array_equal(slope, np.zeros((5, 3)))


def test_nothing_that_counts_is_zero():
    for loss in (
        functools.partial(ntxent, EMBEDDINGS, LABELS),
        functools.partial(info_nce, EMBEDDINGS, EMBEDDINGS),
    ):
        mean = loss(weights=mx.zeros(5))
        assert (mean.total.item(), mean.weight.item()) == (0, 0)


def test_the_temperature_may_be_learned():
    slope = mx.grad(lambda t: info_nce(EMBEDDINGS, mx.sin(EMBEDDINGS), temperature=t).value)(mx.array(0.5))
    assert mx.isfinite(slope).item()
    assert slope.item() != 0


def test_equal_vectors_have_a_finite_slope():
    slope = mx.grad(lambda x: triplet_margin_loss(x, mx.ones((1, 2)), mx.ones((1, 2))).value)(mx.ones((1, 2)))
    np.testing.assert_array_equal(slope, np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ntxent(EMBEDDINGS, LABELS, temperature=0.0), "ntxent: temperature ... 0, got 0.0"),
        (
            lambda: ntxent(EMBEDDINGS, LABELS[:4]),
            "ntxent: embeddings and labels ... [n, features] ... (5, 3) and (4,)",
        ),
        (lambda: info_nce(EMBEDDINGS, EMBEDDINGS, temperature=-1), "info_nce: temperature ... 0, got -1"),
        (
            lambda: info_nce(EMBEDDINGS, EMBEDDINGS[:4]),
            "info_nce: keys ... queries' shape (5, 3), got (4, 3)",
        ),
        (
            lambda: triplet_margin_loss(EMBEDDINGS, EMBEDDINGS, EMBEDDINGS, norm_degree=0.5),
            "triplet_margin_loss: norm_degree ... 1, got 0.5",
        ),
        (
            lambda: triplet_margin_loss(EMBEDDINGS, EMBEDDINGS, EMBEDDINGS[0]),
            "triplet_margin_loss: negatives ... anchors' shape (5, 3), got (3,)",
        ),
        (
            lambda: triplet_margin_loss(EMBEDDINGS, EMBEDDINGS, EMBEDDINGS, eps=0),
            "triplet_margin_loss: eps ... 0, got 0",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=parts(message)):
        call()
