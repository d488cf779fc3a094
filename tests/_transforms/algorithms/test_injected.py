"""Every optimizer is traced with its numbers as arrays in the state; no kernel is built."""

import inspect

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers

PARAMS = {"w": mx.ones((4, 3)), "b": mx.zeros(3)}
# Arguments that Python reads, or that are not numbers.
STATIC = {
    "noisy_sgd": ("key",),
    "radam": ("b2", "threshold"),
    "optimistic_adam": ("learning_rate", "optimism"),
}
GIVEN = {"noisy_sgd": {"key": 0}, "optimistic_adam": {"optimism": 1e-3}}
NAMES = sorted(name for name in optimizers.__all__ if name != "mup")


@pytest.mark.parametrize("name", NAMES)
def test_no_optimizer_asks_an_injected_hyperparameter_for_its_value(name):
    factory = getattr(optimizers, name)
    signature = inspect.signature(factory).parameters
    numbers = {key: p.default for key, p in signature.items() if isinstance(p.default, float)}
    if "learning_rate" in signature:
        numbers["learning_rate"] = 1e-3
    injected = ps.transforms.inject_hyperparams(factory, static_args=STATIC.get(name, ()))
    transform = injected(**(numbers | GIVEN.get(name, {})))
    state = transform.init(PARAMS)
    traced = mx.compile(lambda g, s, p: transform.update(g, s, p, value=mx.array(1.0)))
    updates, new = traced(PARAMS, state, PARAMS)  # not evaluated: no kernel is built
    assert ps.tree.alike(new, state)
    assert ps.tree.alike(updates, PARAMS)
