"""SGD, Adam and AdamW follow optax and torch, recorded in float64 by references/make_optimizers.py."""

import pytest

import purestep as ps
from tests._transforms.algorithms.recorded import close, compare_optimizer, names, walk
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("optimizers")
optimizers, schedules, transforms = ps.optimizers, ps.schedules, ps.transforms

OPTIMIZERS = {
    "optax.sgd": lambda: optimizers.sgd(0.1),
    "optax.sgd_momentum": lambda: optimizers.sgd(0.1, momentum=0.9),
    "optax.sgd_nesterov": lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True),
    "optax.adam": lambda: optimizers.adam(1e-2),
    "optax.adam_nesterov": lambda: optimizers.adam(1e-2, nesterov=True),
    "optax.adam_eps_root": lambda: optimizers.adam(1e-2, eps=1e-4, eps_root=1e-6),
    "optax.adamw_nesterov": lambda: optimizers.adamw(1e-2, nesterov=True),
    "optax.adamw_masked": lambda: optimizers.adamw(1e-2, weight_decay=1e-2, mask=transforms.matrices),
    "optax.clip_adamw_schedule": lambda: ps.chain(
        transforms.clip_by_global_norm(1.0),
        optimizers.adamw(schedules.warmup_cosine_decay(0.0, 3e-2, 10, 40, 1e-3), weight_decay=0.1),
    ),
    "optax.accumulated_adam": lambda: transforms.accumulate(optimizers.adam(1e-2), every=4),
    "torch.sgd_momentum": lambda: optimizers.sgd(0.1, momentum=0.9),
    "torch.sgd_nesterov": lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True),
    "torch.adam": lambda: optimizers.adam(1e-2, b1=0.8, b2=0.99),
    "torch.adamw": lambda: optimizers.adamw(1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_follow_the_recorded_trajectory(name):
    compare_optimizer(RECORD, name, OPTIMIZERS[name])


def test_every_recorded_trajectory_is_compared():
    assert names(RECORD) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.5, "nesterov": True}),
        ("adam", {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "nesterov": True}),
        ("adamw", {}),
        ("adamw", {"weight_decay": 0.5, "eps_root": 1e-3, "mask": transforms.matrices}),
    ],
)
def test_the_same_name_and_options_mean_the_same_to_optax(name, options):
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    ours = walk(getattr(optimizers, name)(3e-2, **options), steps=10)
    theirs = walk(
        getattr(optax, name)(3e-2, **options),
        steps=10,
        asarray=jnp.asarray,
        apply_updates=optax.apply_updates,
    )
    for step, ((got, _), (want, _)) in enumerate(zip(ours, theirs, strict=True), start=1):
        close(got, want, step)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.sgd(-0.1), "learning_rate ... 0, got -0.1"),
        (lambda: optimizers.sgd(0.1, momentum=1.5), "decay ... 1, got 1.5"),
        (lambda: optimizers.adam(float("nan")), "learning_rate ... finite, got nan"),
        (lambda: optimizers.adam(0.1, b1=1.5), "b1 ... 1, got 1.5"),
        (lambda: optimizers.adamw(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
    ],
)
def test_an_optimizer_refuses_what_its_transforms_refuse(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
