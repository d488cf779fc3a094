"""Every transform of the catalogue under every law: eager on random trees, compiled on one small tree."""

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import purestep as ps
from purestep.testing import laws, same_bits
from purestep.testing.samples import array, like, parameters
from purestep.testing.strategies import compositions, parameter_trees
from tests.catalogue import CATALOGUE, READS_ALL_LEAVES, READS_ITS_LEAF

EAGER = [law for law in laws.ALWAYS if law is not laws.compilation]
LEAFWISE = sorted(set(CATALOGUE) - READS_ALL_LEAVES)
ELEMENTWISE = sorted(set(LEAFWISE) - READS_ITS_LEAF)

# Few shapes, because every new fused kernel takes most of a second on a CPU.
SMALL = {"w": array(1, (2, 3)), "b": [array(2, (3,), mx.bfloat16), None]}


def named(function):
    return function.__name__


@pytest.mark.parametrize("name", CATALOGUE)
@settings(max_examples=5)
@given(params=parameter_trees())
def test_random_trees_eager(name, params):
    # One test for each transform, not for each law: hypothesis nests the settings of a function at every run.
    for law in EAGER:
        law(CATALOGUE[name], params)


@pytest.mark.parametrize("name", CATALOGUE)
def test_compiled_equals_eager(name):
    laws.compilation(CATALOGUE[name], SMALL)


# Signs and thresholds are not smooth, and bfloat16 rounds the difference to zero.
NOT_SMOOTH = {name for name in CATALOGUE if "bfloat16" in name or "sign" in name or "rprop" in name} | {
    "clip",
    "lookahead, reset",
    "round_stochastically",
    "scale_by_ademamix",
    "scale_by_novograd, decayed",
    "schedule_free",
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_counts_stay_at_the_largest_int32(name):
    laws.saturation(CATALOGUE[name], SMALL)


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - NOT_SMOOTH))
def test_gradients_of_updates_are_right(name):
    laws.differentiation(CATALOGUE[name], parameters()[0])


@pytest.mark.parametrize("law", [laws.complement, laws.separation], ids=named)
@pytest.mark.parametrize("name", LEAFWISE)
def test_leaves_apart(name, law):
    for params in parameters():
        law(CATALOGUE[name], params)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elements_apart(name):
    for params in parameters():
        laws.packing(CATALOGUE[name], params)


def test_the_sets_name_entries_of_the_catalogue():
    assert set(CATALOGUE) >= READS_ALL_LEAVES | READS_ITS_LEAF
    assert not READS_ALL_LEAVES & READS_ITS_LEAF


@settings(max_examples=25)
@given(make=compositions(list(CATALOGUE.values())), params=parameter_trees(), seed=st.integers(0, 999))
def test_random_compositions_are_pure_keep_their_state_and_survive_storage(make, params, seed):
    laws.constant_state(make, params)
    laws.purity(make, params)
    laws.storage(make, params)


@settings(max_examples=30)
@given(names=st.lists(st.sampled_from(sorted(CATALOGUE)), min_size=3, max_size=3), params=parameter_trees())
def test_chain_is_associative_for_any_three(names, params):
    def updated(bracket):
        transform = bracket(*(CATALOGUE[name]() for name in names))
        extra = {"value": mx.array(0.5), "weight": mx.array(1.0)}
        return transform.update(like(params, 1), transform.init(params), params, **extra)

    left, ((a, b), c) = updated(lambda x, y, z: ps.chain(ps.chain(x, y), z))
    right, (d, (e, f)) = updated(lambda x, y, z: ps.chain(x, ps.chain(y, z)))
    assert same_bits((left, a, b, c), (right, d, e, f))
