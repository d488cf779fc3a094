"""Forms of trees: what is built alike is recognized, and nothing else."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from purestep import tree
from purestep._core.tree.forms import fits, form, gathered

PARAMS = {"a": mx.ones((2, 3)), "b": [mx.zeros(3), None, {}]}


class Pair(NamedTuple):
    first: Any
    second: Any


OTHERS = {
    "another shape": {"a": mx.ones((3, 2)), "b": [mx.zeros(3), None, {}]},
    "another dtype": {"a": mx.ones((2, 3), mx.float16), "b": [mx.zeros(3), None, {}]},
    "a number": {"a": 1.0, "b": [mx.zeros(3), None, {}]},
    "numpy": {"a": np.ones((2, 3), np.float32), "b": [mx.zeros(3), None, {}]},
    "another key": {"c": mx.ones((2, 3)), "b": [mx.zeros(3), None, {}]},
    "a key more": {"a": mx.ones((2, 3)), "b": [mx.zeros(3), None, {}], "c": mx.zeros(1)},
    "a tuple": {"a": mx.ones((2, 3)), "b": (mx.zeros(3), None, {})},
    "an array for None": {"a": mx.ones((2, 3)), "b": [mx.zeros(3), mx.zeros(1), {}]},
    "shorter": {"a": mx.ones((2, 3)), "b": [mx.zeros(3), None]},
    "None": None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_only_what_is_built_alike_is_recognized(name):
    known = form(PARAMS)
    assert fits(known, tree.map(mx.zeros_like, PARAMS))
    assert fits(known, {"b": PARAMS["b"], "a": PARAMS["a"]})  # the order of keys has no effect
    assert not fits(known, OTHERS[name])
    with_more = {"a": mx.zeros(1), "more": [PARAMS]}
    assert not fits(form(with_more), {"a": mx.zeros(1), "more": [OTHERS[name]]})


def test_a_namedtuple_is_not_a_tuple_or_another_one():
    known = form(Pair(mx.zeros(1), mx.zeros(2)))
    assert fits(known, Pair(mx.ones(1), mx.ones(2)))
    assert not fits(known, (mx.ones(1), mx.ones(2)))


def test_an_array_and_none_have_forms_too():
    assert fits(form(mx.zeros(2)), mx.ones(2))
    assert not fits(form(mx.zeros(2)), mx.ones(3))
    assert not fits(form(mx.zeros(2)), [mx.ones(2)])
    assert fits(form(None), None)
    assert not fits(form(None), {})


class Named(mx.array):
    """An array of a class of the user."""


@pytest.mark.parametrize("shape", [(), (1 << 20,)])
def test_an_array_of_a_subclass_is_a_leaf_that_is_not_recognized(shape):
    # `form` read it as a container: of rows, or not at all for one without axes.
    known = form({"x": Named(mx.zeros(shape))})
    assert known.others[0][1].leaves == [(None, shape, mx.float32)]
    assert not fits(known, {"x": Named(mx.zeros(shape))})
    assert fits(known, {"x": mx.zeros(shape)})


def test_leaves_are_gathered_by_their_keys():
    known = form({"a": mx.zeros(1), "b": {"c": mx.zeros(1), "d": [mx.zeros(1)]}, "e": mx.zeros(1)})
    paths = gathered(known, {"e": "e", "b": {"d": ["b.d.0"], "c": "b.c"}, "a": "a"})
    assert paths == ["a", "e", "b.c", "b.d.0"]
    assert gathered(form(mx.zeros(1)), 3) == [3]


def test_a_form_keeps_no_array_alive():
    mx.clear_cache()
    before = mx.get_active_memory()
    big = {"w": mx.zeros((1 << 20,))}
    mx.eval(big)
    known = form(big)
    del big
    assert mx.get_active_memory() - before < 1 << 20
    assert known.length == 1
