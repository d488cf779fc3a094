"""lookahead: the slow parameters follow, and the fast ones are reset to them."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import eval_params, optimizers, transforms, tree
from purestep.transforms import lookahead
from tests._transforms.walking import trained
from tests.refusals import parts
from tests.trees import same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3), None]}


def test_the_two_follow_each_other_by_hand():
    transform = lookahead(transforms.scale(-1.0), sync_period=3, slow_step_size=0.25)
    params = {"w": mx.array(0.0)}
    state = transform.init(params)
    trained, evaluated = [], []
    for _ in range(6):
        updates, state = transform.update({"w": mx.array(-4.0)}, state, params)
        params = ps.apply_updates(params, updates)
        trained.append(params["w"].item())
        evaluated.append(eval_params(state, params)["w"].item())
    assert trained == [4, 8, 3, 7, 11, 6]
    assert evaluated == [0, 0, 3, 3, 3, 6]


def test_a_slow_step_of_one_is_the_fast_optimizer():
    seen = trained(lookahead(optimizers.adam(0.1), 2, 1.0), PARAMS, 4)
    alone = trained(optimizers.adam(0.1), PARAMS, 4)
    for (params, state), (want, want_state) in zip(seen, alone, strict=True):
        np.testing.assert_allclose(params["w"], want["w"], rtol=1e-6)
        assert same_bits(state.fast_state, want_state)


def test_the_fast_state_is_initialized_again_only_with_reset_state():
    for reset in (False, True):
        states = [state for _, state in trained(lookahead(optimizers.adam(0.1), 2, 0.5, reset), PARAMS, 5)]
        counts = [state.fast_state[0].count.item() for state in states]
        assert counts == ([1, 0, 1, 0, 1] if reset else [1, 2, 3, 4, 5])
        assert [state.steps_since_sync.item() for state in states] == [1, 0, 1, 0, 1]
        start = optimizers.adam(0.1).init(PARAMS)
        assert same_bits(states[1].fast_state[0], start[0]) is reset


def test_slow_parameters_of_bfloat16_ones_are_float32():
    params = {"w": mx.ones(3, mx.bfloat16), "empty": mx.zeros((0, 2))}
    got, state = trained(lookahead(optimizers.sgd(1e-4), 1, 0.5), params, 1)[0]
    assert state.slow["w"].dtype == mx.float32
    assert (state.slow["w"] != 1).all().item()
    assert tree.alike(got, params)
    assert tree.alike(eval_params(state, got), params)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lookahead(optimizers.sgd, 2, 0.5), TypeError, "fast_optimizer ... GradientTransform"),
        (lambda: lookahead(ps.identity(), 0, 0.5), ValueError, "sync_period ... 1, got 0"),
        (lambda: lookahead(ps.identity(), 2.5, 0.5), TypeError, "sync_period ... integer, got 2.5"),
        (lambda: lookahead(ps.identity(), 2, 1.5), ValueError, "slow_step_size ... 1, got 1.5"),
        (lambda: lookahead(ps.identity(), 2, -1), ValueError, "slow_step_size ... 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts("lookahead: " + message)):
        make()


def test_it_needs_the_parameters():
    transform = lookahead(transforms.scale(1.0), 2, 0.5)
    with pytest.raises(ValueError, match="lookahead: params .*needed"):
        transform.update(PARAMS, transform.init(PARAMS))
