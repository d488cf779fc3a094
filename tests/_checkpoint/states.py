"""States to save."""

import mlx.core as mx

VALUE = {"params": {"w": mx.arange(6.0), "b": mx.zeros((2, 2), mx.bfloat16)}, "step": mx.array(3)}

# Arrays of some hundred bytes, in every kind of container.
STATE = {
    "params": {"layers": [{"w": mx.arange(300.0).reshape(15, 20), "b": mx.ones(40, mx.bfloat16)}]},
    "opt_state": ({"mu": mx.arange(300.0).reshape(15, 20)}, None, {}),
    "step": mx.array(7),
}

# Two states of the same names.
ONE, TWO = {"a": mx.zeros(10), "b": mx.zeros(10)}, {"a": mx.ones(10), "b": mx.ones(10)}
