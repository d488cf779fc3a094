"""Quotients of zeros: an eps of 0, a bound of 0, a gradient of 0."""

import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import optimizers, schedules, transforms
from purestep._transforms.core.quotients import factor_within, nonzero

WITHOUT_EPS = {
    "adam": lambda eps: optimizers.adam(0.1, eps=eps),
    "adamw": lambda eps: optimizers.adamw(0.1, eps=eps, weight_decay=0.0),
    "nadam": lambda eps: optimizers.nadam(0.1, eps=eps),
    "adamax": lambda eps: optimizers.adamax(0.1, eps=eps),
    "adan": lambda eps: optimizers.adan(0.1, eps=eps),
    "ademamix": lambda eps: optimizers.ademamix(0.1, eps=eps),
    "simplified_ademamix": lambda eps: optimizers.simplified_ademamix(0.1, eps=eps),
    "amsgrad": lambda eps: optimizers.amsgrad(0.1, eps=eps),
    "adabelief": lambda eps: optimizers.adabelief(0.1, eps=eps, eps_root=0.0),
    "radam": lambda eps: optimizers.radam(0.1, b2=0.9, threshold=4.0, eps=eps),
    "yogi": lambda eps: ps.chain(transforms.scale_by_yogi(eps=eps, initial_accumulator_value=0.0)),
    "rmsprop": lambda eps: optimizers.rmsprop(0.1, eps=eps),
    "rmsprop, outside": lambda eps: optimizers.rmsprop(0.1, eps=eps, eps_in_sqrt=False),
    "rmsprop, centered": lambda eps: optimizers.rmsprop(0.1, eps=eps, centered=True),
    "novograd": lambda eps: optimizers.novograd(0.1, eps=eps),
    "adadelta": lambda eps: optimizers.adadelta(0.1, eps=eps),
    "adagrad": lambda eps: optimizers.adagrad(0.1, initial_accumulator_value=0.0, eps=eps),
    "lamb": lambda eps: optimizers.lamb(0.1, eps=eps),
    "prodigy": lambda eps: optimizers.prodigy(eps=eps),
    "sm3": lambda eps: ps.chain(transforms.scale_by_sm3(eps=eps)),
    "muon": lambda eps: optimizers.muon(0.1, eps=eps),
    "muon, aol": lambda eps: optimizers.muon(0.1, eps=eps, preconditioning="aol"),
    "muon, schatten": lambda eps: optimizers.muon(0.1, eps=eps, preconditioning="schatten"),
    "normalize": lambda eps: transforms.normalize_by_update_norm(eps=eps),
    "trust": lambda eps: transforms.scale_by_trust_ratio(eps=eps),
    "polyak": lambda eps: optimizers.polyak_sgd(eps=eps),
}


@pytest.mark.parametrize("name", WITHOUT_EPS)
def test_without_an_eps_zero_gradients_give_zero_updates(name):
    params, zeros = {"w": mx.ones((2, 2)), "b": mx.ones(2)}, {"w": mx.zeros((2, 2)), "b": mx.zeros(2)}
    for eps in (0.0, mx.array(0.0)):
        if name == "prodigy" and isinstance(eps, mx.array):
            continue
        transform = WITHOUT_EPS[name](eps)
        state = transform.init(params)
        for _ in range(7):
            updates, state = transform.update(zeros, state, params, **extra(name))
            for update in updates.values():
                assert mx.array_equal(update, mx.zeros_like(update))
        updates, _ = transform.update(
            {"w": mx.full((2, 2), math.nan), "b": zeros["b"]}, state, params, **extra(name)
        )
        assert mx.isnan(updates["w"]).all()  # a NaN stays visible


def extra(name):
    return {"value": mx.array(0.5)} if name == "polyak" else {}


@pytest.mark.parametrize("name", ["clip", "clip_by_global_norm", "clip_by_block_rms", "adaptive_grad_clip"])
def test_a_bound_of_zero_from_a_schedule_gives_zeros(name):
    argument = {"clip": "max_delta", "clip_by_global_norm": "max_norm", "clip_by_block_rms": "threshold"}
    falling = {argument.get(name, "clipping"): schedules.linear(1.0, 0.0, 1)}
    transform = transforms.inject_hyperparams(getattr(transforms, name))(**falling)
    params = {"w": mx.ones((2, 2)), "b": mx.ones(2)}
    for gradients in ({"w": mx.zeros((2, 2)), "b": mx.zeros(2)}, {"w": mx.zeros((2, 2)), "b": mx.ones(2)}):
        state = transform.init(params)
        for _ in range(2):
            updates, state = transform.update(gradients, state, params)
        for update in updates.values():
            assert mx.array_equal(update, mx.zeros_like(update))


def test_a_number_divided_by_zero_is_infinite():
    got = mx.array([1.0, 0.0, math.nan]) / nonzero(mx.array([1.0, 0.0, math.nan]), mx.zeros(3), 0.0)
    assert mx.array_equal(got, mx.array([math.inf, 0.0, math.nan]), equal_nan=True)


def test_a_norm_that_is_not_finite_gives_nan():
    assert mx.isnan(factor_within(1.0, mx.array([math.inf, math.nan]))).all()


@pytest.mark.parametrize("bound", [1e-12, 1e-9, 0.3, 1.0, 5.7, 1e9, 1e12])
def test_a_factor_is_that_of_numpy_with_its_derivative(bound):
    norms = np.float32([0.0, 1e-20, 0.1, 0.3, 1.0, 7.0, 1e10, 1e18])
    narrow = np.float32(bound)
    want = np.where(norms > narrow, narrow / np.maximum(norms, narrow), np.float32(1))
    slopes = np.where(norms > narrow, -np.float64(bound) / np.maximum(norms, narrow).astype(float) ** 2, 0.0)
    for given in (bound, mx.array(bound)):
        factor = partial(factor_within, given)
        assert np.array_equal(np.array(factor(mx.array(norms))), want)
        got = mx.grad(lambda x, factor=factor: factor(x).sum())(mx.array(norms))
        np.testing.assert_allclose(np.array(got), slopes, rtol=1e-6, atol=1e-37)
