"""Modules for tests, built without draws from the global stream."""

import gc

import mlx.core as mx

import purestep as ps


def built(build, seed=0):
    """Build a module, with its first weights a function of the seed."""
    with ps.rng.scope(mx.random.key(seed)):
        module = build()
        mx.eval(module.parameters())
    return module


def keeps_the_first_weights(build):
    """Return whether the first weights stay in memory when only apply and new parameters are kept."""

    def bridged():
        apply, params, _ = ps.functional(built(build))
        return apply, ps.tree.map(lambda p: p * 2, params)

    gc.collect()
    before = mx.get_active_memory()
    apply, params = bridged()
    mx.eval(params)
    gc.collect()
    assert callable(apply)
    return mx.get_active_memory() - before >= 1.5 * 4 * ps.tree.size(params)
