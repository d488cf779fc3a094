"""Against an installed optax, where there is one: the same name, the same steps, the defaults of both."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from tests._transforms.algorithms.test_references import LEAVES, walk

optax = pytest.importorskip("optax")

# Rates at which 20 float32 steps of either stay close. Left out: rprop, for optax's lags a step behind, and
# sm3, for optax's fails on 0-d parameters.
RATES = {
    "adabelief": 1e-3, "adadelta": 1e-2, "adafactor": 1e-3, "adagrad": 1e-2, "adam": 1e-3, "adamax": 1e-3,
    "adamaxw": 1e-3, "adamw": 1e-3, "adan": 1e-3, "amsgrad": 1e-3, "fromage": 1e-3, "lamb": 1e-3,
    "lars": 1e-3, "lion": 1e-4, "nadam": 1e-3, "nadamw": 1e-3, "novograd": 1e-3, "radam": 1e-3,
    "optimistic_gradient_descent": 1e-2, "rmsprop": 1e-3, "sgd": 1e-2, "sign_sgd": 1e-4, "yogi": 1e-3,
}  # fmt: skip
CONTRIB = {
    "ademamix": 1e-3, "simplified_ademamix": 1e-3, "adopt": 1e-3, "dadapt_adamw": 1.0, "dog": 1.0,
    "dowg": 1.0, "madgrad": 1e-3, "prodigy": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "rate"), (RATES | CONTRIB).items())
def test_the_defaults_of_a_name_mean_the_same_to_optax(name, rate):
    import jax.numpy as jnp

    theirs = getattr(optax.contrib if name in CONTRIB else optax, name)(rate)
    ours = getattr(ps.optimizers, name)(rate)
    trajectories = zip(
        walk(ours, ps.apply_updates, 20, mx.array),
        walk(theirs, optax.apply_updates, 20, jnp.asarray),
        strict=True,
    )
    for step, (got, want) in enumerate(trajectories, start=1):
        for leaf in LEAVES:
            np.testing.assert_allclose(
                np.array(got[leaf]), np.array(want[leaf]), 2e-5, 2e-6, err_msg=f"{leaf}, step {step}"
            )
