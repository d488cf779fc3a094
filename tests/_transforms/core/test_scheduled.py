"""Schedules that cannot be traced or return no number: the error names the argument."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import optimizers, transforms
from tests.refusals import parts

PARAMS = {"w": mx.ones(3)}


def branching(count, *_, **__):
    return 0.1 if count < 10 else 0.01


BRANCHING = {
    "learning_rate": lambda: optimizers.sgd(branching),
    "step_size_fn": lambda: transforms.scale_by_schedule(branching),
    "b3": lambda: transforms.scale_by_ademamix(b3=branching),
    "alpha": lambda: transforms.scale_by_simplified_ademamix(alpha=branching),
    "decay": lambda: transforms.averaged(optimizers.sgd(0.1), branching),
    "every": lambda: transforms.accumulate(optimizers.sgd(0.1), every=branching),
    "weight_decay": lambda: transforms.inject_hyperparams(optimizers.adamw)(0.1, weight_decay=branching),
    "should_transform_fn": lambda: transforms.conditionally_mask(
        optimizers.sgd(0.1), lambda step: bool(step < 3)
    ),
    "decay_rate_fn": lambda: transforms.scale_by_factored_rms(decay_rate_fn=branching),
    "clip_value_fn": lambda: transforms.scale_by_adopt(clip_value_fn=branching),
}


@pytest.mark.parametrize("name", BRANCHING)
def test_a_schedule_that_branches_in_python_is_named_with_what_to_write(name):
    transform = BRANCHING[name]()
    state = transform.init(PARAMS)
    mx.eval(transform.update(PARAMS, state, PARAMS))  # it works uncompiled
    compiled = mx.compile(lambda state: transform.update(PARAMS, state, PARAMS))
    with pytest.raises(ValueError, match=rf": {name} .*count.* Python .*mx\.where"):
        compiled(state)


def test_another_error_of_a_schedule_stays_as_it_is():
    with pytest.raises(ZeroDivisionError):
        optimizers.sgd(lambda count: 1 / 0).init(PARAMS)
    with pytest.raises(ValueError, match="^mine$"):
        optimizers.sgd(lambda count: (_ for _ in ()).throw(ValueError("mine"))).init(PARAMS)


@pytest.mark.parametrize("value", [None, "0.1", True, [0.1]])
def test_a_value_that_is_no_number_is_refused(value):
    message = f"scale_by_learning_rate: the value ... schedule learning_rate ... number, got {value!r}"
    with pytest.raises(TypeError, match=parts(message)):
        optimizers.sgd(lambda count: value).init(PARAMS)


def test_a_schedule_may_return_a_numpy_number():
    updates, _ = (t := optimizers.sgd(lambda count: np.float32(0.5))).update(PARAMS, t.init(PARAMS))
    assert updates["w"].tolist() == [-0.5] * 3


def test_a_schedule_that_writes_into_its_count_leaves_the_state_right():
    def schedule(count):
        count -= 1
        return 0.5 * count

    transform = optimizers.sgd(schedule)
    state = transform.init(PARAMS)
    for rate in (-0.5, 0.0, 0.5):
        _, state = transform.update(PARAMS, state, PARAMS)
        assert state[-1].learning_rate.item() == rate
    assert state[-1].count.item() == 3
