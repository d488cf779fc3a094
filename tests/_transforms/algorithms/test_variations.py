"""Relative, factored, optimistic and other variations follow optax, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.optimizers import (
    adafactor,
    fromage,
    lamb,
    lars,
    noisy_sgd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    polyak_sgd,
    sm3,
)
from purestep.schedules import linear
from purestep.transforms import (
    adaptive_grad_clip,
    centralize,
    clip,
    clip_by_block_rms,
    keep_params_nonnegative,
    matrices,
    normalize_by_update_norm,
    scale,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_schedule,
    scale_by_sm3,
    scale_by_trust_ratio,
)
from tests._transforms.algorithms.recorded import compare_optimizer, names
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("variations")


def small(*transforms):
    """Return a chain that descends at a small rate."""
    return ps.chain(*transforms, scale(-0.05))


OPTIMIZERS = {
    "clip": lambda: small(clip(0.3)),
    "clip_by_block_rms": lambda: small(clip_by_block_rms(0.2)),
    "adaptive_grad_clip": lambda: small(adaptive_grad_clip(0.05)),
    "keep_params_nonnegative": lambda: ps.chain(ps.optimizers.sgd(0.05), keep_params_nonnegative()),
    "scale_by_trust_ratio": lambda: small(scale_by_trust_ratio(0.3, 0.5, 0.1)),
    "lamb": lambda: lamb(1e-2),
    "lamb_decayed": lambda: lamb(1e-2, eps_root=1e-6, weight_decay=0.1, mask=matrices),
    "lars": lambda: lars(1.0),
    "lars_masked": lambda: lars(
        0.5, 0.1, matrices, 0.01, 1e-3, trust_ratio_mask=matrices, momentum=0.8, nesterov=True
    ),
    "fromage": lambda: fromage(1e-2),
    "fromage_scheduled": lambda: fromage(linear(0.05, 0.01, 30), 0.1),
    "scale_by_param_block_norm": lambda: small(scale_by_param_block_norm(0.5)),
    "scale_by_param_block_rms": lambda: small(scale_by_param_block_rms(0.5)),
    "adafactor": lambda: adafactor(1e-2, min_dim_size_to_factor=2),
    "adafactor_whole": lambda: adafactor(1e-2, factored=False, clipping_threshold=0.5),
    "adafactor_absolute": lambda: adafactor(
        linear(0.05, 0.01, 30),
        min_dim_size_to_factor=3,
        decay_rate=0.7,
        multiply_by_parameter_scale=False,
        clipping_threshold=None,
        momentum=0.9,
        weight_decay_rate=1e-3,
        weight_decay_mask=matrices,
    ),
    "adafactor_no_rate": lambda: small(adafactor(min_dim_size_to_factor=2), scale(-1.0)),
    "sm3": lambda: sm3(0.05),
    "scale_by_sm3": lambda: small(scale_by_sm3(0.5, 0.9, 1e-6)),
    "scale_by_schedule": lambda: scale_by_schedule(linear(-0.1, -0.01, 30)),
    "centralize": lambda: small(centralize()),
    "normalize_by_update_norm": lambda: small(normalize_by_update_norm(0.5)),
    "polyak_sgd": lambda: polyak_sgd(0.4),
    "polyak_sgd_plus": lambda: polyak_sgd(0.4, 0.5, 0.3, 0.1, "sps+"),
    "optimistic_gradient_descent": lambda: optimistic_gradient_descent(0.05, 1.0, 0.7),
    "optimistic_adam": lambda: optimistic_adam(1e-2),
    "optimistic_adam_optimism": lambda: optimistic_adam(1e-2, 4e-3, nesterov=False),
    "optimistic_adam_v2": lambda: optimistic_adam_v2(linear(0.02, 0.005, 30), alpha=0.9, beta=0.6),
}


def loss(step, gradients):
    """Return the recorded loss."""
    return {"value": mx.array(RECORD["values"][step], mx.float32)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_follow_the_recorded_trajectory(name):
    compare_optimizer(RECORD, name, OPTIMIZERS[name], extra=loss)


def test_every_recorded_trajectory_is_compared():
    assert names(RECORD) == set(OPTIMIZERS)


def test_the_learning_rate_of_adafactor_is_the_one_that_is_used():
    params = {"w": mx.random.normal((130, 140), key=mx.random.key(0))}
    gradients = {"w": mx.random.normal((130, 140), key=mx.random.key(1))}
    small, large = (adafactor(rate, multiply_by_parameter_scale=False) for rate in (1e-3, 1e-1))
    first, state = small.update(gradients, small.init(params), params)
    second, _ = large.update(gradients, large.init(params), params)
    assert mx.allclose(100 * first["w"], second["w"], rtol=1e-5)
    assert mx.sqrt(mx.square(first["w"]).mean()).item() == pytest.approx(1e-3, rel=1e-3)
    assert [rate.item() for _, rate in ps.tree.fields(state, "learning_rate")] == [pytest.approx(1e-3)]


def test_fromage_keeps_a_small_rate_exact_and_readable():
    transform, params = fromage(1e-3), {"w": mx.array([1000.0, 0.0])}
    updates, state = transform.update({"w": mx.array([0.0, 1.0])}, transform.init(params), params)
    np.testing.assert_allclose(
        updates["w"], [1000 * (1 / np.sqrt(1 + 1e-6) - 1), -1 / np.sqrt(1 + 1e-6)], 1e-5
    )
    assert ps.tree.fields(state, "learning_rate")[0][1].item() == pytest.approx(1e-3)


def test_a_learning_rate_may_be_an_array_or_a_schedule():
    params = {"w": mx.ones((2, 3))}
    makers = (
        lamb, lars, fromage, adafactor, sm3, optimistic_gradient_descent, optimistic_adam, optimistic_adam_v2
    )  # fmt: skip
    for make in makers:
        results = []
        for rate in (0.01, mx.array(0.01), lambda count: mx.array(0.01)):
            transform = make(rate)
            results.append(transform.update(params, transform.init(params), params)[0]["w"])
        assert mx.array_equal(results[0], results[1]), make
        assert mx.array_equal(results[0], results[2]), make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lamb(-1.0), "learning_rate ... 0, got -1.0"),
        (lambda: lamb(1.0, b1=1.0), "b1 ... 1, got 1.0"),
        (lambda: lars(1.0, weight_decay=-1.0), "weight_decay ... 0, got -1.0"),
        (lambda: lars(1.0, trust_coefficient=-1.0), "trust_coefficient ... 0, got -1.0"),
        (lambda: lars(1.0, momentum=1.5), "decay ... 1, got 1.5"),
        (lambda: fromage(float("nan")), "learning_rate ... finite, got nan"),
        (lambda: fromage(1.0, -1.0), "min_norm ... 0, got -1.0"),
        (lambda: adafactor(-1.0), "learning_rate ... 0, got -1.0"),
        (lambda: adafactor(1.0, momentum=1.0), "adafactor: momentum ... 1, got 1.0"),
        (lambda: adafactor(1.0, decay_rate=0.0), "decay_rate ... 0, got 0.0"),
        (lambda: adafactor(1.0, clipping_threshold=0.0), "threshold ... 0, got 0.0"),
        (lambda: adafactor(1.0, weight_decay_rate=-1.0), "weight_decay ... 0, got -1.0"),
        (lambda: sm3(1.0, momentum=-0.1), "b1 ... 0, got -0.1"),
        (lambda: noisy_sgd(0.1, eta=-1.0, key=0), "eta ... 0, got -1.0"),
        (lambda: polyak_sgd(0.0), "max_learning_rate ... 0, got 0.0"),
        (lambda: optimistic_adam(0.0, 0.1), "optimistic_adam: learning_rate ... 0, got 0.0"),
        (
            lambda: optimistic_adam(linear(1.0, 0.0, 2), 0.1),
            "optimistic_adam: learning_rate ... number ... optimism",
        ),
        (lambda: optimistic_adam(0.1, float("inf")), "optimistic_adam: optimism ... finite, got inf"),
    ],
)
def test_an_optimizer_refuses_what_it_cannot_use(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
