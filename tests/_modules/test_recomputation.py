"""Functions under mx.checkpoint have the same gradient and draws as without it, and leave no traces."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.core import checkpoint as bound
from mlx.nn.utils import checkpoint

import purestep as ps
from tests._modules.building import built
from tests.trees import same_bits

X = mx.random.normal((16, 8), key=mx.random.key(5))
SGD = ps.optimizers.sgd(1.0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x):
        return x + self.dropout(self.second(mx.tanh(self.first(x))))


def plain(block, x):
    return block(x)


def by_utility(block, x):
    return checkpoint(block)(x)


def by_hand(block, x):
    def called(params, x):
        block.update(params)
        return block(x)

    return mx.checkpoint(called)(block.trainable_parameters(), x)


def nested(block, x):
    return checkpoint(block, lambda x: checkpoint(block)(x))(x)


class Net(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.blocks, self.norm = [Block(), Block()], nn.BatchNorm(8)
        self._call = call

    def __call__(self, x):
        for block in self.blocks:
            x = self._call(block, x)
        return self.norm(x)


def network(call, frozen=()):
    net = built(lambda: Net(call), seed=1)
    for block in net.blocks:
        block.first.freeze(keys=list(frozen))
    return net


def gradient(module, *, seed=0, compiled=False, held=None):
    """Return the gradient of one step, and check that it leaves the global stream unchanged."""
    apply, params, state = ps.functional(module)
    state = state if held is None else held
    mx.random.seed(seed)
    stream = mx.random.state[0].tolist()

    def loss_fn(params, state, batch, rng):
        out, state = apply(params, batch, rng=rng, model_state=state)
        return mx.square(out - 1).sum(), {}, state

    start = ps.TrainState.create(params, SGD, seed=7, model_state=state)
    step = ps.train_step(loss_fn, SGD, stateful=True)
    after, _ = (ps.compiled(step) if compiled else step)(start, X)
    assert mx.random.state[0].tolist() == stream
    mx.random.seed(1)
    return ps.tree.map(lambda a, b: a - b, start.params, after.params), after.model_state


@pytest.mark.parametrize("call", [by_utility, by_hand, nested])
@pytest.mark.parametrize("frozen", [(), ("bias",), ("weight",)])
def test_a_recomputed_block_has_the_gradient_and_the_statistics_of_a_plain_one(call, frozen):
    want = gradient(network(plain, frozen), seed=1)
    assert same_bits(gradient(network(call, frozen), seed=2), want)


def test_compiled_too():
    want = gradient(network(plain), compiled=True)
    assert same_bits(gradient(network(by_utility), seed=3, compiled=True), want)


def test_the_arrays_of_the_call_are_recomputed_with_not_those_of_the_bridge():
    state = ps.functional(network(plain, ("weight",)))[2]
    other = ps.tree.map(lambda x: x * 1.5, state)
    want, _ = gradient(network(plain, ("weight",)), held=other)
    got, _ = gradient(network(by_utility, ("weight",)), held=other)
    assert same_bits(got, want)


def test_the_module_is_left_as_it_was_and_runs_after_a_compiled_step():
    net = network(by_utility)
    before = dict(ps.tree.items(net.parameters()))
    gradient(net, compiled=True)
    assert all(before[path] is leaf for path, leaf in ps.tree.items(net.parameters()))
    with ps.rng.scope(mx.random.key(0)):
        mx.eval(net(X))


def test_a_function_checkpointed_when_the_module_was_built_is_recomputed_right():
    class Early(Net):
        def __init__(self):
            super().__init__(plain)
            self._again = [checkpoint(block) for block in self.blocks]

        def __call__(self, x):
            for again in self._again:
                x = again(x)
            return self.norm(x)

    assert same_bits(gradient(built(Early, seed=1)), gradient(network(plain)))


def test_a_loss_functions_own_checkpoint_draws_the_same_again():
    def noisy(w, x):
        return mx.square(w * x * mx.random.bernoulli(0.5, x.shape)).sum()

    start = ps.TrainState.create({"w": mx.ones(8)}, SGD, seed=3)
    steps = [
        ps.train_step(lambda p, b, r, f=f: f(p["w"], b), SGD)
        for f in (noisy, lambda w, x: mx.checkpoint(noisy)(w, x))
    ]
    (one, _), (two, _) = (step(start, X) for step in steps)
    assert same_bits(one, two)


@mx.checkpoint
def decorated(w, x):
    return mx.square(w * x * mx.random.bernoulli(0.5, x.shape)).sum()


@mx.checkpoint
def decorated_without_draws(w, x):
    return mx.square(w * x).sum()


def test_draws_in_a_function_that_was_checkpointed_at_its_definition_are_refused():
    start = ps.TrainState.create({"w": mx.ones(8)}, SGD, seed=3)
    build = {
        "train_step": lambda fn: ps.train_step(lambda p, b, r: fn(p["w"], b), SGD),
        "sam_step": lambda fn: ps.sam_step(lambda p, b, r: fn(p["w"], b), SGD),
        "cached_contrastive_step": lambda fn: ps.cached_contrastive_step(
            lambda p, b, r: {"a": fn(p["w"], b) * b},
            lambda p, found, b: found["a"].sum(),
            SGD,
            microbatches=2,
        ),
    }
    for name, make in build.items():
        make(decorated_without_draws)(start, X)
        for step in (make(decorated), ps.compiled(make(decorated))):
            with pytest.raises(ValueError, match=f"{name}: .*backward pass, random .*without a key"):
                step(start, X)


def test_an_array_that_would_lose_its_gradient_is_refused_by_name():
    class Sharing(Net):
        def __call__(self, x):
            return checkpoint(self.blocks[0], lambda x: self.blocks[1](self.blocks[0](x)))(x)

    apply, params, state = ps.functional(built(lambda: Sharing(plain), seed=1))
    with pytest.raises(
        ValueError, match=r"apply: .*uses blocks.1.first.weight, blocks.1.first.bias.* gradient would be lost"
    ):
        apply(params, X, rng=mx.random.key(0), model_state=state)


def test_what_mlx_made_around_the_modules_arrays_at_building_is_refused():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.fast = mx.compile(lambda x: self.linear(x))

        def __call__(self, x):
            return self.fast(x)

    with pytest.raises(ValueError, match=r"functional: fast .*mx.compile"):
        ps.functional(built(Early, seed=1))


def test_a_name_of_its_own_for_checkpoint_is_refused():
    def call(block, x):
        return bound(lambda x: block(x))(x)

    with pytest.raises(ValueError, match=r"functional: .*call .*`bound`.*write mx.checkpoint"):
        ps.functional(network(call))


def test_checkpoint_is_mlx_own_outside():
    original = mx.checkpoint
    with ps.rng.scope(mx.random.key(0)):
        assert mx.checkpoint is not original
    assert mx.checkpoint is original
