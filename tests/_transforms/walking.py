"""Steps of a transform, one after another."""

import mlx.core as mx

import purestep as ps
from purestep import tree
from tests.trees import like


def steps_of(transform, gradients, params, state=None, **extra):
    """Return (updates, state) after each of these gradients; the parameters do not change."""
    state, seen = transform.init(params) if state is None else state, []
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params, **extra)
        seen.append((updates, state))
    return seen


def trained(transform, params, steps):
    """Return (parameters, state) after each step; the gradients are `like(params, seed)`."""
    state, seen = transform.init(params), []
    for seed in range(steps):
        updates, state = transform.update(like(params, seed), state, params)
        params = ps.apply_updates(params, updates)
        seen.append((params, state))
    return seen


def draws(params, steps):
    """Return the gradients `like(params, seed)` of so many steps."""
    return [like(params, seed) for seed in range(steps)]


def scalars(values):
    """Return gradients of one number each, for `{"w": mx.array(0.0)}`."""
    return [{"w": mx.array(value)} for value in values]


def only(transform, updates, params=None):
    """Return the first update of a tree that is one array."""
    held = None if params is None else {"w": params}
    return transform.update({"w": updates}, transform.init(held), held)[0]["w"]


def noting():
    """Return an identity transform, and the dict in which it notes its updates and further arguments."""
    seen = {}

    def note(updates, state, params=None, **extra):
        seen.update(extra, updates=updates)
        return updates, state

    return ps.GradientTransform(lambda params: (), note), seen


def is_zero(updates):
    """Tell whether every element of every leaf is zero."""
    return not any(leaf.any().item() for leaf in tree.leaves(updates))
