"""Optimistic gradients and Adam, computed by hand."""

import mlx.core as mx
import pytest

from purestep.optimizers import optimistic_adam, optimistic_adam_v2
from purestep.transforms import scale_by_optimistic_gradient
from tests.refusals import parts

NAN = float("nan")


def test_optimism_adds_the_change_of_the_gradient():
    transform, seen = scale_by_optimistic_gradient(2.0, 0.5), []
    state = transform.init({"w": mx.array(0.0, mx.float16)})
    for gradient in (4.0, 6.0, 1.0):
        updates, state = transform.update({"w": mx.array(gradient, mx.float16)}, state)
        seen.append(updates["w"].item())
    assert seen == [8.0, 13.0, -0.5]
    assert updates["w"].dtype == state.previous_gradient["w"].dtype == mx.float32
    assert not state.is_initial_step.item()


def test_optimistic_adam_takes_optimism_in_proportion_to_the_rate():
    params, results = {"w": mx.ones(3)}, []
    for transform in (optimistic_adam(0.1, 0.05), optimistic_adam_v2(0.1, beta=0.5)):
        state = transform.init(params)
        for scale in (1.0, -2.0):
            updates, state = transform.update({"w": scale * mx.ones(3)}, state, params)
        results.append(updates["w"])
    assert mx.array_equal(*results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: scale_by_optimistic_gradient(NAN),
            "scale_by_optimistic_gradient: alpha ... finite, got nan",
        ),
        (
            lambda: scale_by_optimistic_gradient(1.0, NAN),
            "scale_by_optimistic_gradient: beta ... finite, got nan",
        ),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
