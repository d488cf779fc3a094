"""apply_every: sums let out together."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.transforms import apply_every


def run(k, gradients, dtype=mx.float32):
    transform = apply_every(k)
    state, out = transform.init({"w": mx.zeros((), dtype)}), []
    for gradient in gradients:
        updates, state = transform.update({"w": mx.array(gradient, dtype)}, state)
        out.append(updates["w"].item())
    return out, state


def test_the_sum_comes_out_every_k_calls():
    assert run(3, [1, 2, 4, 8, 16, 32, 64])[0] == [0, 0, 7, 0, 0, 56, 0]
    assert run(1, [1, 2])[0] == [1, 2]
    _, state = run(3, [1, 2, 4, 8])
    assert (state.count.item(), state.grad_acc["w"].item()) == (1, 8)


def test_bfloat16_updates_are_summed_in_float32():
    out, state = run(301, [256.0] + [1.0] * 300, mx.bfloat16)
    assert out[-1] == 556
    assert state.grad_acc["w"].dtype == mx.float32


def test_an_infinite_update_does_not_outlive_its_window():
    assert run(2, [mx.inf, 1.0, 1.0, 1.0])[0] == [0, mx.inf, 0, 2]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="apply_every: k must be at least 1, got 0"):
        apply_every(0)
    with pytest.raises(TypeError, match="apply_every: k must be an integer, got 2.0"):
        apply_every(2.0)
    assert ps.tree.leaves(apply_every().init({"a": None}).grad_acc) == []
