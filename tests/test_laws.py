"""The laws that every transform of the catalogue obeys, on random trees."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import purestep as ps
from tests.catalogue import CATALOGUE
from tests.trees import like, parameter_trees, same_bits, snapshot

SEEDS = st.integers(0, 2**16)
every_transform = pytest.mark.parametrize("make", CATALOGUE.values(), ids=CATALOGUE.keys())

# Fixed shapes and few of them: on a CPU every new fused kernel costs most of a second.
FIXED = {"w": mx.ones((2, 3)) * 0.5, "b": [mx.ones(3, mx.bfloat16), None], "empty": mx.zeros((0, 3))}


def run(transform, params, seeds):
    """Feed gradients made from the seeds; return the last updates and state."""
    state, updates = transform.init(params), None
    for seed in seeds:
        updates, state = transform.update(like(params, seed), state, params)
    return updates, state


@every_transform
@given(params=parameter_trees(), seed=SEEDS)
def test_inputs_are_untouched(make, params, seed):
    transform, gradients = make(), like(params, seed)
    state = transform.init(params)
    before = snapshot(params), snapshot(gradients), snapshot(state)
    mx.eval(transform.update(gradients, state, params))
    assert (snapshot(params), snapshot(gradients), snapshot(state)) == before


@every_transform
@given(params=parameter_trees(), seed=SEEDS)
def test_the_same_input_gives_the_same_bits(make, params, seed):
    transform = make()
    first = run(transform, params, [seed, seed + 1])
    run(transform, params, [seed + 2])
    assert same_bits(run(transform, params, [seed, seed + 1]), first)
    assert same_bits(run(make(), params, [seed, seed + 1]), first)


@every_transform
@given(params=parameter_trees(), seed=SEEDS)
def test_structure_and_shapes_of_updates_and_all_of_the_state_stay(make, params, seed):
    transform = make()
    updates, state = run(transform, params, [seed, seed + 1])
    assert ps.tree.spec(ps.tree.cast(updates, mx.float32)) == ps.tree.spec(ps.tree.cast(params, mx.float32))
    assert ps.tree.alike(state, transform.init(params))
    pairs = zip(ps.tree.leaves(updates), ps.tree.leaves(params), strict=True)
    assert all(update.dtype in (param.dtype, mx.float32) for update, param in pairs)


@every_transform
@given(params=parameter_trees(), seed=SEEDS)
def test_identity_is_neutral_in_a_chain(make, params, seed):
    updates, state = run(make(), params, [seed, seed + 1])
    for chained, at in ((ps.chain(ps.identity(), make()), 1), (ps.chain(make(), ps.identity()), 0)):
        got, states = run(chained, params, [seed, seed + 1])
        assert same_bits(got, updates)
        assert same_bits(states[at], state)


@given(
    params=parameter_trees(),
    seed=SEEDS,
    names=st.lists(st.sampled_from(sorted(CATALOGUE)), min_size=3, max_size=3),
)
def test_chain_is_associative(params, seed, names):
    def members():
        return (CATALOGUE[name]() for name in names)

    a, b, c = members()
    left, ((sa, sb), sc) = run(ps.chain(ps.chain(a, b), c), params, [seed, seed + 1])
    a, b, c = members()
    right, (ta, (tb, tc)) = run(ps.chain(a, ps.chain(b, c)), params, [seed, seed + 1])
    assert same_bits(left, right)
    assert same_bits((sa, sb, sc), (ta, tb, tc))


@every_transform
@given(params=parameter_trees(), seed=SEEDS)
def test_state_survives_storage_and_the_run_goes_on_with_the_same_bits(make, params, seed):
    transform = make()
    _, state = run(transform, params, [seed])
    restored = ps.checkpoint.from_bytes(ps.checkpoint.to_bytes(state), like=transform.init(params))
    assert same_bits(restored, state)
    gradients = like(params, seed + 1)
    assert same_bits(
        transform.update(gradients, restored, params), transform.update(gradients, state, params)
    )


@every_transform
def test_compiled_equals_eager(make):
    transform = make()
    compiled = mx.compile(lambda gradients, state, params: transform.update(gradients, state, params))
    state = transform.init(FIXED)
    for seed in range(3):
        gradients = like(FIXED, seed)
        eager = transform.update(gradients, state, FIXED)
        got = compiled(gradients, state, FIXED)
        assert ps.tree.alike(got, eager)
        for (path, a), b in zip(ps.tree.items(got), ps.tree.leaves(eager), strict=True):
            # A fused kernel rounds bfloat16 results of float32 arithmetic once; so does the eager one.
            assert mx.allclose(a.astype(mx.float32), b.astype(mx.float32), rtol=1e-6, atol=1e-7), path
        state = eager[1]


@every_transform
def test_a_vmapped_population_equals_a_loop(make):
    transform = make()
    members = [ps.tree.leaves(like(FIXED, seed)) for seed in (10, 20)]
    state = transform.init(FIXED)

    def update(gradients):
        updates, new = transform.update(ps.tree.unflatten(FIXED, gradients), state, FIXED)
        return ps.tree.leaves(updates) + [leaf for leaf in ps.tree.leaves(new) if leaf.ndim]

    population = mx.vmap(update)([mx.stack(leaves) for leaves in zip(*members, strict=True)])
    for index, member in enumerate(members):
        for together, alone in zip(population, update(member), strict=True):
            one = together[index] if together.shape != alone.shape else together
            assert mx.allclose(one.astype(mx.float32), alone.astype(mx.float32), rtol=1e-6, atol=1e-7)
