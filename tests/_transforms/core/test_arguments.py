"""Arguments of other libraries' optimizers: refused by name, with what to write instead."""

import inspect

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms
from tests.refusals import parts

EVERY = list(optimizers.__all__)


@pytest.mark.parametrize("name", EVERY)
def test_every_optimizer_names_an_argument_that_it_does_not_have(name):
    known = ", ".join(inspect.signature(getattr(optimizers, name)).parameters)
    with pytest.raises(TypeError, match=f"^{name}: no_such_thing .* argument.* {known}$"):
        getattr(optimizers, name)(no_such_thing=1)


@pytest.mark.parametrize(
    ("name", "argument", "meant"),
    [
        ("sgd", "weight_decay", "chain(transforms.add_decayed_weights(0.5), optimizers.sgd(...))"),
        ("adam", "weight_decay", "optimizers.adamw and optimizers.lion"),
        ("adafactor", "weight_decay", "weight_decay_rate"),
        ("adam", "lr", "learning_rate"),
        ("adamw", "betas", "b1 and b2"),
        ("rmsprop", "alpha", "decay"),
        ("adam", "amsgrad", "optimizers.amsgrad"),
        ("adam", "momentum", "chain(transforms.trace(0.5), optimizers.adam(...))"),
        ("sgd", "maximize", "chain(transforms.scale(-1.0), optimizers.sgd(...))"),
        ("adamw", "max_grad_norm", "chain(transforms.clip_by_global_norm(0.5), optimizers.adamw(...))"),
        ("adamw", "fused", "leave it out: ps.compiled"),
        ("adam", "bias_correction", "leave it out"),
        ("adam", "warmup_steps", "learning_rate takes a schedule"),
        ("adam", "params", "TrainState.create(params, transform)"),
        ("adamw", "weight_decy", "weight_decay?"),
    ],
)
def test_a_common_argument_is_refused_with_what_to_write(name, argument, meant):
    message = parts(f"{name}: {argument} ... argument; ... {meant}")
    with pytest.raises(TypeError, match=message):
        getattr(optimizers, name)(**{"learning_rate": 0.1, argument: 0.5})


def test_what_is_advised_works():
    for make in (
        lambda: ps.chain(transforms.add_decayed_weights(0.5), optimizers.sgd(0.1)),
        lambda: ps.chain(transforms.clip_by_global_norm(0.5), optimizers.adamw(0.1)),
        lambda: ps.chain(transforms.trace(0.5), optimizers.adam(0.1)),
        lambda: transforms.accumulate(optimizers.adam(0.1), every=2),
    ):
        params, transform = {"w": mx.ones(2)}, make()
        transform.update(params, transform.init(params), params)


def test_signatures_and_injection_are_as_before():
    assert list(inspect.signature(optimizers.sgd).parameters)[:2] == ["learning_rate", "momentum"]
    state = transforms.inject_hyperparams(optimizers.adamw)(0.1, weight_decay=0.5).init({"w": mx.ones(2)})
    assert set(state.hyperparams) == {"learning_rate", "weight_decay"}
    with pytest.raises(TypeError, match="sgd: weight_decay .* argument; chain"):
        transforms.inject_hyperparams(optimizers.sgd)(0.1, weight_decay=0.5)
