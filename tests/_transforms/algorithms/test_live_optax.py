"""Optimizers follow those of the same name in an installed optax, with the defaults of both."""

import pytest

import purestep as ps
from tests._transforms.algorithms.recorded import close, walk

optax = pytest.importorskip("optax")

# At these rates 20 float32 steps of both stay close. Omitted: rprop, which is a step late in optax, and sm3,
# which fails for 0-d parameters in optax.
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
    theirs = walk(theirs, steps=20, asarray=jnp.asarray, apply_updates=optax.apply_updates)
    for step, ((got, _), (want, _)) in enumerate(zip(walk(ours, steps=20), theirs, strict=True), start=1):
        close(got, want, step, 2e-5, 2e-6)
