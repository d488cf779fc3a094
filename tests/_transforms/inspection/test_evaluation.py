"""eval_params finds the averages of every transform that keeps them."""

from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import eval_params, optimizers, transforms, tree
from purestep._transforms.inspection.evaluation import where_held
from purestep.transforms import averaged, lookahead, masked, named_chain, partition, skip_nonfinite
from tests._transforms.walking import trained
from tests.trees import same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.bfloat16), None]}


class DoubleState(NamedTuple):
    """A user's state with a method `eval_params`."""

    factors: Any

    def eval_params(self, params):
        return where_held(lambda factor, param: factor * param, self.factors, params)


def after(transform):
    """Return the parameters and the state after three steps."""
    return trained(transform, PARAMS, 3)[-1]


def test_without_an_average_the_parameters_are_returned():
    params, state = after(optimizers.adam(0.1))
    assert eval_params(state, params) is params


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        skip_nonfinite,
        lambda inner: named_chain(("first", ps.chain(ps.identity(), inner))),
        lambda inner: transforms.accumulate(inner, every=1),
        lambda inner: partition({"all": inner}, "all"),
        lambda inner: masked(inner, True),
    ],
)
def test_an_average_is_found_however_deep(wrap):
    params, state = after(averaged(optimizers.sgd(0.1), 0.5))
    wrapped, deep = after(wrap(averaged(optimizers.sgd(0.1), 0.5)))
    assert same_bits(eval_params(deep, wrapped), eval_params(state, params))
    assert not same_bits(eval_params(deep, wrapped), wrapped)


def test_a_whole_train_state_brings_its_parameters():
    transform = averaged(optimizers.sgd(0.1), 0.5)
    state = ps.TrainState.create(PARAMS, transform)
    _, opt_state = after(transform)
    state = state.replace(opt_state=opt_state)
    assert same_bits(eval_params(state), eval_params(opt_state, PARAMS))


def test_parameters_without_an_average_are_returned_as_the_same_arrays():
    transform = masked(averaged(optimizers.sgd(0.1), 0.5), {"w": True, "b": False})
    params, state = after(transform)
    found = eval_params(state, params)
    assert found["b"][0] is params["b"][0]
    assert not mx.array_equal(found["w"], params["w"]).item()


def test_averages_of_different_groups_are_joined():
    groups = {"w": "slow", "b": "mean"}
    transform = partition(
        {"slow": lookahead(optimizers.sgd(0.1), 2, 0.5), "mean": averaged(optimizers.sgd(0.1), 0.5)}, groups
    )
    params, state = after(transform)
    found = eval_params(state, params)
    assert same_bits(found["w"], state.inner_states["slow"].slow["w"])
    assert same_bits(found["b"][0], state.inner_states["mean"].average["b"][0].astype(mx.bfloat16))


def test_the_outer_of_two_nested_averages_is_returned():
    params, state = after(averaged(lookahead(optimizers.sgd(0.1), 2, 0.5), 0.5))
    assert same_bits(eval_params(state, params)["w"], state.average["w"])


def test_two_averages_of_one_parameter_side_by_side_are_refused():
    state = (DoubleState(tree.map(lambda _: 2.0, PARAMS)), DoubleState({"w": 2.0, "b": None}))
    with pytest.raises(ValueError, match="eval_params: two averages .*w$"):
        eval_params(state, PARAMS)


def test_any_state_with_the_method_is_found():
    found = eval_params(({"deep": [DoubleState({"w": 3.0, "b": [None, None]})]},), PARAMS)
    assert found["w"][0, 0].item() == 3.0
    assert found["b"][0] is PARAMS["b"][0]


def test_an_optimizer_state_alone_is_not_enough():
    with pytest.raises(ValueError, match="eval_params: params .*needed"):
        eval_params(averaged(ps.identity()).init(PARAMS))
