"""Adaptive and sign optimizers follow optax and torch, recorded in float64 by references/make_adaptive.py."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import schedules
from purestep.optimizers import (
    adabelief,
    adadelta,
    adagrad,
    adamax,
    adamaxw,
    amsgrad,
    lion,
    nadam,
    nadamw,
    novograd,
    radam,
    rmsprop,
    rprop,
    sign_sgd,
    signum,
    yogi,
)
from purestep.transforms import matrices, scale_by_learning_rate, scale_by_lion, scale_by_yogi
from tests._transforms.algorithms.recorded import compare_optimizer, names
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("adaptive")
SCHEDULE = schedules.linear(1e-2, 1e-3, 40)


def directed(transform, rate=1e-2):
    return ps.chain(transform, scale_by_learning_rate(rate))


OPTIMIZERS = {
    "optax.rmsprop": lambda: rmsprop(1e-2),
    "optax.rmsprop_corrected": lambda: rmsprop(1e-2, decay=0.99, eps_in_sqrt=False, bias_correction=True),
    "optax.rmsprop_centered": lambda: rmsprop(
        1e-2, eps=1e-6, initial_scale=0.5, centered=True, momentum=0.9, nesterov=True
    ),
    "optax.rmsprop_centered_corrected": lambda: rmsprop(1e-2, eps=1e-3, centered=True, bias_correction=True),
    "optax.adagrad": lambda: adagrad(SCHEDULE),
    "optax.adagrad_from_0": lambda: adagrad(1e-2, initial_accumulator_value=0.0, eps=0.0),
    "optax.lion": lambda: lion(1e-3),
    "optax.lion_masked": lambda: lion(SCHEDULE, b1=0.8, b2=0.9, weight_decay=0.1, mask=matrices),
    "optax.lion_smooth": lambda: directed(scale_by_lion(mode="smooth", smooth_beta=2.0)),
    "optax.lion_refined": lambda: directed(scale_by_lion(mode="refined")),
    "optax.sign_sgd": lambda: sign_sgd(1e-2),
    "optax.signum": lambda: signum(1e-2, beta=0.8),
    "optax.nadam": lambda: nadam(1e-2),
    "optax.nadamw": lambda: nadamw(1e-2, b1=0.8, weight_decay=0.1, mask=matrices),
    "optax.adamax": lambda: adamax(1e-2),
    "optax.adamaxw": lambda: adamaxw(SCHEDULE, b2=0.9, weight_decay=0.1, mask=matrices),
    "optax.amsgrad": lambda: amsgrad(1e-2, b2=0.9),
    "optax.amsgrad_uncorrected": lambda: amsgrad(
        1e-2, eps=1e-4, eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False
    ),
    "optax.adabelief": lambda: adabelief(1e-2),
    "optax.adabelief_nesterov": lambda: adabelief(1e-2, b2=0.99, eps=1e-4, eps_root=1e-6, nesterov=True),
    "optax.yogi": lambda: yogi(1e-2),
    "optax.yogi_high": lambda: directed(scale_by_yogi(b2=0.9, eps_root=1e-6, initial_accumulator_value=0.1)),
    "optax.radam": lambda: radam(1e-2),
    "optax.radam_nesterov": lambda: radam(1e-2, b2=0.9, eps_root=1e-6, threshold=6.0, nesterov=True),
    "optax.radam_never": lambda: radam(1e-2, b2=0.5),
    "optax.novograd": lambda: novograd(1e-2),
    "optax.novograd_decayed": lambda: novograd(1e-2, b2=0.9, eps_root=1e-6, weight_decay=0.1),
    "optax.adadelta": lambda: adadelta(1.0),
    "optax.adadelta_masked": lambda: adadelta(0.1, rho=0.8, weight_decay=0.1, weight_decay_mask=matrices),
    # The updates in the state of optax.rprop; the updates that it returns are a step late.
    "optax.rprop_in_time": lambda: rprop(1e-2),
    "torch.rmsprop": lambda: rmsprop(1e-2, decay=0.99, eps_in_sqrt=False),
    "torch.rmsprop_centered": lambda: rmsprop(
        1e-2, decay=0.99, eps_in_sqrt=False, momentum=0.9, centered=True
    ),
    # Torch adds eps outside the root: both are equal for an eps of 0.
    "torch.adagrad": lambda: adagrad(1e-2, eps=0.0),
    # Torch's momentum rises towards b1: both are equal if it starts there.
    "torch.nadam": lambda: nadam(1e-2),
    "torch.adamax": lambda: adamax(1e-2),
    # Torch corrects the largest mean square, optax takes the largest corrected one: equal for a b2 of 0.
    "torch.amsgrad": lambda: amsgrad(1e-2, b2=0.0),
    # Torch adds eps before it corrects the mean square: both are equal for an eps of 0.
    "torch.radam": lambda: radam(1e-2, eps=0.0),
    "torch.adadelta": lambda: adadelta(0.5, weight_decay=0.1),
    "torch.rprop": lambda: rprop(1e-2),
    "torch.rprop_bounded": lambda: rprop(1e-2, 0.25, 1.5, 5e-3, 2e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_follow_the_recorded_trajectory(name):
    compare_optimizer(RECORD, name, OPTIMIZERS[name])


def test_every_recorded_trajectory_is_compared():
    assert names(RECORD) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmsprop(-0.1), "learning_rate ... 0, got -0.1"),
        (lambda: rmsprop(0.1, momentum=1.5), "decay ... 1, got 1.5"),
        (lambda: rmsprop(0.1, eps=-1.0, centered=True), "scale_by_stddev: eps ... 0, got -1.0"),
        (lambda: adagrad(float("nan")), "learning_rate ... finite, got nan"),
        (lambda: lion(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
        (lambda: nadam(0.1, b1=1.5), "b1 ... 1, got 1.5"),
        (lambda: nadamw(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
        (lambda: adamaxw(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
        (lambda: amsgrad(0.1, eps_root=-1), "eps_root ... 0, got -1"),
        (lambda: adabelief(0.1, b2=1.0), "b2 ... 1, got 1.0"),
        (lambda: yogi(0.1, eps=-1), "eps ... 0, got -1"),
        (lambda: radam(0.1, threshold=1.0), "threshold ... 4, got 1.0"),
        (lambda: novograd(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
        (lambda: adadelta(-1.0), "learning_rate ... 0, got -1.0"),
        (lambda: rprop(0.0), "learning_rate ... 0, got 0.0"),
    ],
)
def test_an_optimizer_refuses_what_its_transforms_refuse(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()


def test_a_rate_may_be_an_array():
    params = {"w": mx.ones(2)}
    for transform in (
        rmsprop(mx.array(0.5)),
        lion(mx.array(0.5)),
        adadelta(mx.array(0.5)),
        rprop(mx.array(0.5)),
    ):
        updates, state = transform.update({"w": mx.ones(2)}, transform.init(params), params)
        assert (updates["w"] < 0).all().item()
        assert all(isinstance(leaf, mx.array) for leaf in ps.tree.leaves(state))
