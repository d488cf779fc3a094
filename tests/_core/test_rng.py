"""Keyed randomness."""

import contextlib

import mlx.core as mx
import pytest

import purestep as ps
from purestep import rng


def draws(key, x):
    with rng.scope(key):
        return x * mx.random.uniform(shape=(3,)), mx.random.normal((2,))


def test_draws_are_a_function_of_the_key_eager_compiled_differentiated_and_vmapped():
    key, x = mx.random.key(3), mx.ones(3)
    eager = draws(key, x)[0].tolist()
    assert draws(key, x)[0].tolist() == eager
    assert draws(mx.random.key(4), x)[0].tolist() != eager
    assert mx.compile(draws)(key, x)[0].tolist() == eager
    assert mx.grad(lambda x: draws(key, x)[0].sum())(x).tolist() == eager
    keys = mx.stack([key, mx.random.key(4)])
    assert mx.vmap(draws)(keys, mx.ones((2, 3)))[0][0].tolist() == eager


def test_two_draws_in_one_scope_differ():
    with rng.scope(mx.random.key(0)):
        assert mx.random.uniform().item() != mx.random.uniform().item()


def test_the_global_stream_goes_on_as_if_nothing_had_been_drawn():
    mx.random.seed(5)
    expected = [mx.random.uniform().item() for _ in range(4)]
    mx.random.seed(5)
    got = [mx.random.uniform().item()]
    draws(mx.random.key(0), mx.ones(3))
    got.append(mx.random.uniform().item())
    mx.eval(mx.compile(draws)(mx.random.key(0), mx.ones(3)))
    got.append(mx.random.uniform().item())
    with contextlib.suppress(RuntimeError), rng.scope(mx.random.key(1)):
        mx.random.uniform()
        raise RuntimeError
    got.append(mx.random.uniform().item())
    mx.random.seed(1)
    assert got == expected


def test_scopes_nest():
    outer, inner = mx.random.key(1), mx.random.key(2)
    with rng.scope(outer):
        first = mx.random.uniform().item()
        with rng.scope(inner):
            mx.random.uniform()
        second = mx.random.uniform().item()
    with rng.scope(outer):
        assert [mx.random.uniform().item(), mx.random.uniform().item()] == [first, second]


def test_the_key_itself_is_not_written_to():
    key = mx.random.key(7)
    with rng.scope(key):
        mx.random.uniform()
    assert key.tolist() == mx.random.key(7).tolist()


def test_many_eager_scopes_leave_no_growing_graph_behind():
    from purestep._core.tracing import graph

    for _ in range(50):
        with rng.scope(mx.random.key(0)):
            mx.random.uniform()
    assert not graph.primitives(mx.random.state[0])


def test_forbidden_lets_keyed_draws_pass_and_refuses_global_ones():
    with rng.forbidden("here"):
        mx.random.uniform(key=mx.random.key(0))
    with (
        pytest.raises(ValueError, match="^here: random numbers .*without a key: pass rng="),
        rng.forbidden("here"),
    ):
        mx.random.uniform()


def test_fold_in_gives_unrelated_keys_for_neighbours():
    keys = [
        tuple(rng.fold_in(mx.random.key(seed), number).tolist()) for seed in range(8) for number in range(8)
    ]
    assert len(set(keys)) == 64
    assert rng.fold_in(mx.random.key(0), mx.array(5)).tolist() == rng.fold_in(mx.random.key(0), 5).tolist()


@pytest.mark.parametrize("key", [3, mx.array([1, 2]), mx.zeros((3,), mx.uint32), mx.zeros((1, 2), mx.uint32)])
def test_what_is_not_a_key_is_refused(key):
    with pytest.raises(ValueError, match=r"^rng\.scope: a key .* uint32 .*\(2,\)"), rng.scope(key):
        pass


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused_in_the_name_of_what_was_called(seed):
    windows = {"tokens": mx.arange(20), "batch_size": 2, "context": 4}
    for where, call in {
        "TrainState.create": lambda: ps.TrainState.create(
            {"w": mx.ones(2)}, ps.optimizers.sgd(0.1), seed=seed
        ),
        "add_noise": lambda: ps.transforms.add_noise(0.1, 0.5, seed),
        "RandomWindows": lambda: ps.data.RandomWindows(**windows, seed=seed),
        "rollout": lambda: ps.data.rollout(
            lambda p, t: t, [[1]], lambda p, c: [0.0], group_size=1, max_tokens=1, seed=seed
        ),
    }.items():
        with pytest.raises(ValueError, match=rf"^{where}: (seed|key) .* (0|2\*\*\d\d), got -?\d+$"):
            call()


def test_a_scope_is_a_decorator_too_and_opens_again_within_itself():
    @rng.scope(mx.random.key(3))
    def drawn(depth):
        first = mx.random.uniform(shape=(2,))
        return [first, *(drawn(depth - 1) if depth else [])]

    a, b = drawn(1)
    assert mx.array_equal(a, b)
    block = rng.scope(mx.random.key(3))
    with block:
        outer = mx.random.uniform(shape=(2,))
        with block:
            inner = mx.random.uniform(shape=(2,))
    assert mx.array_equal(outer, a)
    assert mx.array_equal(inner, a)
