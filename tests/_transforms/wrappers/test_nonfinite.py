"""Gradients with NaN or infinity are skipped and counted; the counters reset."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, schedules, transforms, tree
from purestep._transforms.wrappers.nonfinite import all_finite
from purestep.transforms import apply_if_finite, averaged, skip_nonfinite, zero_nans
from tests._transforms.walking import is_zero, scalars, steps_of
from tests.refusals import parts
from tests.trees import like, same_bits

PARAMS = {"w": mx.ones((2, 3)), "b": [mx.ones(3, mx.bfloat16), None], "empty": mx.zeros((0, 2))}
BAD = (mx.nan, mx.inf, -mx.inf)


def spoiled(gradients, value=mx.nan):
    """Return the gradients with one element of the bfloat16 leaf replaced."""
    spot = mx.array([value, 0, 0], mx.bfloat16)
    return {**gradients, "b": [gradients["b"][0] + spot, None]}


def numbers(transform, values):
    """Return the updates of a single number and the states."""
    seen = steps_of(transform, scalars(values), {"w": mx.array(0.0)})
    return [updates["w"].item() for updates, _ in seen], [state for _, state in seen]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["first", "middle"])
def test_a_nonfinite_step_changes_only_the_counts(value, place):
    inner = ps.chain(
        transforms.clip_by_global_norm(1.0),
        averaged(optimizers.adamw(schedules.linear(0.1, 0.2, 10)), 0.9),
    )
    good = [like(PARAMS, seed) for seed in range(3)]
    at = 0 if place == "first" else 1
    seen = steps_of(skip_nonfinite(inner), [*good[:at], spoiled(good[0], value), *good[at:]], PARAMS)
    alone = steps_of(inner, good, PARAMS)
    updates, state = seen.pop(at)
    assert tree.alike(updates, alone[0][0])
    assert is_zero(updates)
    assert (state.consecutive.item(), state.total.item()) == (1, 1)
    for (got, got_state), (want, want_state) in zip(seen, alone, strict=True):
        assert same_bits(got, want)
        assert same_bits(got_state.inner, want_state)


def test_consecutive_resets_on_a_finite_step_and_total_does_not():
    _, states = numbers(skip_nonfinite(transforms.scale(1.0)), [1.0, mx.nan, mx.inf, 2.0, mx.nan, 3.0])
    assert [state.consecutive.item() for state in states] == [0, 1, 2, 0, 1, 0]
    assert [state.total.item() for state in states] == [0, 1, 2, 2, 3, 3]
    assert {state.total.dtype for state in states} == {mx.int32}


def test_after_too_many_in_a_row_one_is_let_through_and_the_counting_begins_again():
    updates, states = numbers(skip_nonfinite(transforms.scale(1.0), 2), [mx.inf] * 7)
    assert updates == [0, 0, mx.inf, 0, 0, mx.inf, 0]
    assert [state.consecutive.item() for state in states] == [1, 2, 0, 1, 2, 0, 1]
    assert states[-1].total.item() == 7


def test_by_default_every_nonfinite_gradient_is_skipped():
    updates, states = numbers(skip_nonfinite(transforms.scale(1.0)), [mx.nan] * 20)
    assert updates == [0.0] * 20
    assert states[-1].consecutive.item() == 20


def test_apply_if_finite_has_optax_fields_and_its_counter_resets():
    updates, states = numbers(apply_if_finite(transforms.scale(1.0), 1), [1.0, mx.inf, mx.inf, mx.inf, 2.0])
    assert updates == [1.0, 0.0, mx.inf, 0.0, 2.0]
    assert states[0]._fields == ("notfinite_count", "last_finite", "total_notfinite", "inner_state")
    assert [state.notfinite_count.item() for state in states] == [0, 1, 0, 1, 0]
    assert [state.last_finite.item() for state in states] == [True, False, False, False, True]
    assert [state.total_notfinite.item() for state in states] == [0, 1, 2, 3, 3]


def test_finite_gradients_whose_norm_overflows_are_not_skipped():
    updates, states = numbers(skip_nonfinite(transforms.scale(0.5)), [3e38])
    assert updates[0] > 1e38
    assert states[0].total.item() == 0


def test_the_inner_transform_receives_the_same_gradients_object():
    gradients, seen = {"w": mx.array(1.0)}, []

    def note(updates, state, params=None, *, gradients, value):
        seen.append((updates is gradients, params, value))
        return updates, state

    transform = skip_nonfinite(ps.GradientTransform(lambda params: (), note))
    transform.update(gradients, transform.init(gradients), gradients, gradients=gradients, value=3, other=4)
    assert seen == [(True, gradients, 3)]


def test_zero_nans_leaves_infinities_and_says_where_it_found_any():
    gradients = {"a": mx.array([1.0, mx.nan, mx.inf]), "b": mx.array(2.0, mx.bfloat16), "c": None}
    transform = zero_nans()
    state = transform.init(gradients)
    assert [leaf.item() for leaf in tree.leaves(state)] == [False, False]
    updates, state = transform.update(gradients, state)
    assert updates["a"].tolist() == [1.0, 0.0, mx.inf]
    assert updates["b"].dtype == mx.bfloat16
    assert [leaf.item() for leaf in tree.leaves(state)] == [True, False]
    _, state = transform.update({"a": mx.zeros(3), "b": mx.zeros((), mx.bfloat16), "c": None}, state)
    assert [leaf.item() for leaf in tree.leaves(state)] == [False, False]


@pytest.mark.parametrize("size", [1, 1 << 14, (1 << 14) + 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_all_finite_looks_at_small_and_large_leaves(size, dtype):
    values = {"a": mx.ones(size, dtype), "b": mx.ones(3), "c": mx.zeros(0)}
    assert all_finite(values).item()
    for bad in BAD:
        assert not all_finite({**values, "b": mx.array([1.0, bad])}).item()
        assert not all_finite(
            {**values, "a": mx.concatenate([values["a"][1:], mx.array([bad], dtype)])}
        ).item()


def test_a_tree_without_elements_is_finite():
    assert all_finite({"a": None}).item()
    assert all_finite({"a": mx.zeros(0)}).item()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: skip_nonfinite(transforms.scale), TypeError, "skip_nonfinite: inner ... Gradient"),
        (
            lambda: skip_nonfinite(ps.identity(), -1),
            ValueError,
            "skip_nonfinite: max_consecutive ... 0, got -1",
        ),
        (
            lambda: skip_nonfinite(ps.identity(), 1.5),
            TypeError,
            "skip_nonfinite: max_consecutive ... integer, got 1.5",
        ),
        (
            lambda: apply_if_finite(None, 1),
            TypeError,
            "apply_if_finite: inner ... GradientTransform, got None",
        ),
        (
            lambda: apply_if_finite(ps.identity(), None),
            TypeError,
            "apply_if_finite: max_consecutive_errors ... integer, got None",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
