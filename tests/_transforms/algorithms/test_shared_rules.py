"""Rules that many transforms share: ranges of decays and epsilons, float32 state, visible NaN."""

import inspect

import mlx.core as mx
import pytest

from purestep import transforms, tree
from tests.refusals import parts
from tests.running import run

ADAM_LIKE = [
    transforms.scale_by_adam,
    transforms.scale_by_adamax,
    transforms.scale_by_adan,
    transforms.scale_by_ademamix,
    transforms.scale_by_amsgrad,
    transforms.scale_by_belief,
    transforms.scale_by_novograd,
    transforms.scale_by_radam,
    transforms.scale_by_simplified_ademamix,
    transforms.scale_by_yogi,
]
OTHERS = [
    transforms.scale_by_adadelta,
    transforms.scale_by_adopt,
    transforms.scale_by_lion,
    transforms.scale_by_rms,
    transforms.scale_by_rss,
    transforms.scale_by_sm3,
    transforms.scale_by_sophia,
    transforms.scale_by_stddev,
]
DECAYS, EPSILONS = ("b1", "b2", "b3"), ("eps", "eps_root")
BAD_DECAYS = [
    (1.0, ValueError, "... 1, got 1.0"),
    (-0.1, ValueError, "... 0, got -0.1"),
    (float("nan"), ValueError, "... finite, got nan"),
    (True, TypeError, "... number, got True"),
]
BAD_EPSILONS = [
    (-1e-16, ValueError, "... 0, got -1e-16"),
    (float("inf"), ValueError, "... finite, got inf"),
    ("0.9", TypeError, "... number, got '0.9'"),
    (None, TypeError, "... number, got None"),
]


def arguments(names):
    """Return each of these transforms with each of its arguments that has one of these names."""
    return [
        pytest.param(make, name, id=f"{make.__name__}-{name}")
        for make in ADAM_LIKE
        for name in inspect.signature(make).parameters
        if name in names
    ]


def assert_refused(make, name, values):
    for value, error, rule in values:
        with pytest.raises(error, match=parts(f"{make.__name__}: {name} {rule}")):
            make(**{name: value})


@pytest.mark.parametrize(("make", "name"), arguments(DECAYS))
def test_a_decay_must_be_in_0_to_1(make, name):
    assert_refused(make, name, BAD_DECAYS)


@pytest.mark.parametrize(("make", "name"), arguments(EPSILONS))
def test_an_epsilon_must_be_at_least_0(make, name):
    assert_refused(make, name, BAD_EPSILONS)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("make", ADAM_LIKE + OTHERS, ids=lambda make: make.__name__)
def test_state_and_updates_are_float32_for_half_precision_gradients(make, dtype):
    updates, state = run(make(), [[0.5]], dtype)
    floating = {leaf.dtype for leaf in tree.leaves(state) if leaf.dtype != mx.int32}
    assert floating | {updates[0].dtype} == {mx.float32}


# The norm in novograd is taken over the whole array.
ELEMENTWISE = [make for make in ADAM_LIKE + OTHERS if make is not transforms.scale_by_novograd]


@pytest.mark.parametrize("make", ELEMENTWISE, ids=lambda make: make.__name__)
def test_a_nan_is_visible_in_its_own_element_alone(make):
    updates, _ = run(make(), [[float("nan"), 1.0], [1.0, 1.0]])
    assert mx.isnan(updates[-1]).tolist() == [True, False]
