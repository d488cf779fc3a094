"""Transforms that break a law on purpose: `check` raises the error of that law first."""

import itertools
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import purestep as ps
from purestep import transforms, tree
from purestep.testing import laws

PARAMS = {"w": mx.array([[0.5, -0.25], [0.125, 2.0]]), "b": mx.array([1.0, -1.0])}


class Memory(NamedTuple):
    """A state like momentum's."""

    sum: Any


def stateless(fn):
    return ps.GradientTransform(lambda params: (), lambda u, s, params=None: (fn(u), s))


def remembering(update):
    """A transform whose state is a Memory of zeros."""
    return ps.GradientTransform(lambda params: Memory(tree.zeros_like(params)), update)


LEAKED = []


def leaks_global_state():
    def update(updates, state, params=None):
        LEAKED.append(1)
        return tree.map(lambda u: u * len(LEAKED), updates), state

    return ps.GradientTransform(lambda params: (), update)


def counts_in_python():
    count = itertools.count(1)

    def fn(updates):
        calls = next(count)
        return tree.map(lambda u: u / calls, updates)

    return stateless(fn)


def counts_instances():
    counts_instances.made = getattr(counts_instances, "made", 0) + 1
    return transforms.scale(float(counts_instances.made))


def remembers_the_first_gradient():
    first = []

    def fn(updates):
        first.append(updates)
        return tree.map(mx.subtract, updates, first[0])

    return stateless(fn)


def mutates_its_input():
    def halve(x):
        x[...] = x / 2
        return x

    return stateless(lambda u: tree.map(halve, u))


def mutates_its_state():
    def update(updates, state, params=None):
        for memory, u in zip(tree.leaves(state.sum), tree.leaves(updates), strict=True):
            memory[...] = memory + u
        return state.sum, state

    return remembering(update)


def draws_globally():
    return stateless(lambda u: tree.map(lambda x: x + mx.random.normal(x.shape), u))


def changes_dtype():
    return stateless(lambda u: tree.cast(u, mx.float16))


def flattens_its_updates():
    return stateless(lambda u: tree.map(lambda x: x.reshape(-1), u))


def forgets_a_leaf():
    return stateless(lambda u: {name: leaf for name, leaf in u.items() if name != "b"})


def returns_a_tuple_for_its_state():
    return remembering(lambda u, s, params=None: (u, tuple(s)))


def narrows_its_state():
    return remembering(lambda u, s, params=None: (u, Memory(tree.cast(s.sum, mx.bfloat16))))


def grows_its_state():
    return ps.GradientTransform(lambda params: [], lambda u, s, params=None: (u, [*s, mx.array(0.0)]))


def keeps_a_python_number():
    return ps.GradientTransform(lambda params: Memory(0), lambda u, s, params=None: (u, Memory(s.sum + 1)))


def pairs_leaves_by_position():
    def update(updates, state, params=None):
        scales = iter((2.0, 3.0))
        return tree.map(lambda u: next(scales) * u, updates), state

    return ps.GradientTransform(lambda params: (), update)


def keeps_its_memory_beside_the_state():
    beside = {}

    def update(updates, state, params=None):
        seen = beside.get(id(state.sum["w"]), 0)
        new = Memory(tree.map(lambda s: s + 0, state.sum))
        beside[id(new.sum["w"])] = seen + 1
        beside.setdefault("alive", []).append(new)
        return tree.map(lambda u: u * (1 + seen), updates), new

    return remembering(update)


def branches_on_a_value():
    return stateless(lambda u: u if tree.norm(u).item() > 1 else tree.zeros_like(u))


def cannot_be_vmapped():
    return stateless(lambda u: tree.unflatten(u, mx.depends(tree.leaves(u), [mx.array(0.0)])))


def looks_at_other_leaves():
    return transforms.clip_by_global_norm(0.1)


def looks_at_other_elements():
    return stateless(lambda u: tree.map(lambda x: x - x.mean(), u))


BROKEN = [
    (mutates_its_input, "purity"),
    (mutates_its_state, "purity"),
    (draws_globally, "purity"),
    (leaks_global_state, "determinism"),
    (counts_in_python, "determinism"),
    (counts_instances, "determinism"),
    (remembers_the_first_gradient, "determinism"),
    (changes_dtype, "structure"),
    (flattens_its_updates, "structure"),
    (forgets_a_leaf, "structure"),
    (returns_a_tuple_for_its_state, "constant_state"),
    (narrows_its_state, "constant_state"),
    (grows_its_state, "constant_state"),
    (keeps_a_python_number, "constant_state"),
    (pairs_leaves_by_position, "order"),
    (keeps_its_memory_beside_the_state, "storage"),
    (branches_on_a_value, "compilation"),
    (cannot_be_vmapped, "population"),
    (looks_at_other_leaves, "complement"),
    (looks_at_other_elements, "packing"),
]


@pytest.mark.parametrize(("make", "law"), BROKEN, ids=[make.__name__ for make, _ in BROKEN])
def test_each_broken_transform_breaks_the_law_it_should(make, law):
    claims = {"elementwise": True} if law in ("complement", "separation", "packing") else {}
    with ps.rng.scope(mx.random.key(0)), pytest.raises(laws.LawBroken) as caught:
        laws.check(make, params=PARAMS, **claims)
    assert caught.value.law == law
    assert str(caught.value).startswith(law + ": ")


def test_the_laws_in_three_lines():
    from purestep.testing import laws

    laws.check(lambda: transforms.trace(0.9), elementwise=True)


def test_a_law_can_be_left_out():
    laws.check(cannot_be_vmapped, params=PARAMS, without=(laws.population,))
