"""Numbers of numpy are accepted wherever a number is."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import optimizers, schedules, transforms, tree


def cycle(n, i):
    return {"init_value": n(0.1), "peak_value": n(0.5), "warmup_steps": i(1), "decay_steps": i(4)}


def made():
    """Return makers of optimizers and schedules that take functions to convert numbers and integers."""
    s, t, o = schedules, transforms, optimizers
    return {
        "adamw": lambda n, i: o.adamw(n(0.1), n(0.5), n(0.5), n(0.1), n(0.1), weight_decay=n(0.5)),
        "sgd": lambda n, i: o.sgd(n(0.1), momentum=n(0.5)),
        "rmsprop": lambda n, i: o.rmsprop(n(0.1), n(0.5), n(0.1), n(0.5), momentum=n(0.5)),
        "rprop": lambda n, i: o.rprop(n(0.1)),
        "prodigy": lambda n, i: o.prodigy(n(0.5), (n(0.5), n(0.5)), n(0.5), n(0.1), n(0.1), n(0.5), n(0.5)),
        "dadapt": lambda n, i: o.dadapt_adamw(n(0.5), (n(0.5), n(0.5)), n(0.1), n(0.1), n(0.5)),
        "dog": lambda n, i: o.dog(n(0.5), ("distance", n(0.1))),
        "dowg": lambda n, i: o.dowg(n(0.5), n(0.1), n(0.1)),
        "muon": lambda n, i: o.muon(n(0.1), (n(3.5), n(-4.75), n(2.0)), i(2), n(0.5), n(0.1), n(0.1)),
        "lookahead": lambda n, i: t.lookahead(o.sgd(n(0.1)), i(2), n(0.5)),
        "plateau": lambda n, i: t.reduce_on_plateau(n(0.5), i(2), n(0.5)),
        "adafactor": lambda n, i: o.adafactor(
            n(0.1), i(2), n(0.5), momentum=n(0.5), weight_decay_rate=n(0.5)
        ),
        "accumulate": lambda n, i: t.accumulate(o.sgd(n(0.1)), every=i(1)),
        "clip": lambda n, i: t.clip(n(0.5)),
        "clip_by_global_norm": lambda n, i: t.clip_by_global_norm(n(0.5)),
        "agc": lambda n, i: t.adaptive_grad_clip(n(0.5), n(0.1), i(0)),
        "noise": lambda n, i: t.add_noise(n(0.5), n(0.5), i(3)),
        "polyak": lambda n, i: o.polyak_sgd(n(0.5), n(0.5), n(0.1), n(0.1)),
        "injected": lambda n, i: t.inject_hyperparams(o.adamw)(n(0.1), weight_decay=n(0.5)),
        "linear": lambda n, i: s.linear(n(0.5), n(0.1), i(4), i(1)),
        "polynomial": lambda n, i: s.polynomial(n(0.5), n(0.1), n(2.0), i(4), i(1)),
        "exponential": lambda n, i: s.exponential_decay(n(0.5), i(4), n(0.5), i(1), True, n(0.1)),
        "piecewise": lambda n, i: s.piecewise_interpolate(
            "cosine", n(0.5), {np.int64(2): n(0.5), np.int64(4): n(0.5)}
        ),
        "constants": lambda n, i: s.piecewise_constant(n(0.5), {np.int64(2): n(0.5), np.int64(4): n(0.5)}),
        "onecycle": lambda n, i: s.cosine_onecycle(i(9), n(0.5), n(0.25), n(2.0), n(4.0)),
        "linear onecycle": lambda n, i: s.linear_onecycle(i(9), n(0.5), n(0.25), n(0.5), n(2.0), n(4.0)),
        "warmup_cosine": lambda n, i: s.warmup_cosine_decay(n(0.1), n(0.5), i(2), i(9), n(0.0), n(2.0)),
        "warmup_stable": lambda n, i: s.warmup_stable_decay(n(0.1), n(0.5), i(2), i(1), i(4), n(0.5)),
        "warmup_exp": lambda n, i: s.warmup_exponential_decay(n(0.1), n(0.5), i(2), i(4), n(0.5)),
        "inverse_sqrt": lambda n, i: s.inverse_sqrt(n(0.1), n(0.5), i(2), i(4)),
        "joined": lambda n, i: s.join_schedules([s.constant(n(0.5)), s.constant(n(0.1))], [i(3)]),
        "sgdr": lambda n, i: s.sgdr([cycle(n, i)] * 2),
    }


@pytest.mark.parametrize("name", made())
def test_numbers_of_numpys_make_what_pythons_make(name):
    """A number of numpy times an MLX array would be an array of numpy, outside the device and the trace."""
    results = []
    for number, integer in ((float, int), (np.float32, np.int64), (np.array, np.array)):
        # Both are rounded to float32, so that the numbers are equal.
        value = made()[name](lambda x, n=number: n(float(np.float32(x))), integer)
        if callable(value):
            results.append([value(n) for n in range(0, 9, 2)] + [value(mx.array(n)) for n in range(0, 9, 3)])
            assert all(isinstance(x, mx.array) for x in results[-1])
            continue
        state, params = value.init({"w": mx.ones((2, 3))}), {"w": mx.ones((2, 3))}
        for _ in range(3):
            updates, state = value.update({"w": mx.full((2, 3), 0.5)}, state, params, **extra(name))
        results.append(updates["w"])
        assert isinstance(updates["w"], mx.array)
    for other in results[1:]:
        assert mx.array_equal(
            mx.array(results[0]) if isinstance(other, list) else results[0], mx.array(other)
        )


def extra(name):
    return {"value": mx.array(0.5)} if name in ("polyak", "plateau") else {}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.adam, optimizers.rprop, optimizers.muon])
def test_a_rate_in_half_precision_leaves_the_state_in_float32(make, dtype):
    params = {"w": mx.ones((2, 3))}
    transform = make(mx.array(0.125, dtype))
    state = transform.init(params)
    assert all(leaf.dtype in (mx.float32, mx.int32) for leaf in tree.leaves(state))
    _, after = transform.update(params, state, params)
    assert tree.alike(state, after)


@pytest.mark.parametrize("make", [optimizers.prodigy, optimizers.dadapt_adamw])
def test_what_a_step_hands_over_is_left_aside(make):
    params, transform = {"w": mx.ones(2)}, make()
    transform.update(params, transform.init(params), params, value=mx.array(1.0), grad_norm=mx.array(1.0))
