"""scale_by_rms, scale_by_stddev, scale_by_rss: equations in float64, roots of 0, refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import rmsprop
from purestep.transforms import scale_by_rms, scale_by_rss, scale_by_stddev
from tests.refusals import parts
from tests.running import assert_updates, normal, run


def by_the_book(
    gradients, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False, centered=False
):
    """Yield each update by the equations of the docstrings, in float64."""
    mu, nu = 0.0, initial_scale
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        mu, nu = decay * mu + (1 - decay) * g, decay * nu + (1 - decay) * g**2
        weight = 1 - decay**t if bias_correction else 1
        square = nu / weight - (mu / weight) ** 2 if centered else nu / weight
        yield g / np.sqrt(square + eps) if eps_in_sqrt else g / (np.sqrt(square) + eps)


OPTIONS = [
    {},
    {"decay": 0.0},
    {"decay": 0.5, "eps": 0.25, "initial_scale": 2.0},
    {"eps": 0.5, "eps_in_sqrt": False},
    {"eps": 0.01, "bias_correction": True},
    {"decay": 0.5, "eps": 0.01, "bias_correction": True, "eps_in_sqrt": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_root_mean_squares_are_those_of_the_equations(options):
    gradients = normal(6, 5)
    assert_updates(scale_by_rms(**options), gradients, by_the_book(gradients, **options))


@pytest.mark.parametrize("options", [options for options in OPTIONS if options.get("decay") != 0])
def test_standard_deviations_are_those_of_the_equations(options):
    gradients = normal(6, 5)
    want = by_the_book(gradients, centered=True, **options)
    assert_updates(scale_by_stddev(**options), gradients, want)


@pytest.mark.parametrize(("start", "eps"), [(0.1, 1e-7), (0.0, 0.0), (2.0, 0.5)])
def test_sums_of_squares_are_those_of_the_equations(start, eps):
    gradients = normal(6, 5)
    sums = start + np.cumsum(gradients.astype(np.float64) ** 2, axis=0)
    assert_updates(scale_by_rss(start, eps), gradients, gradients / np.sqrt(sums + eps))


@pytest.mark.parametrize("gradient", [3.0, 1e4, 1e-3, 0.1])
def test_equal_gradients_have_a_standard_deviation_of_zero_not_nan(gradient):
    transform = scale_by_stddev(decay=0.5, bias_correction=True)
    updates, _ = run(transform, [[gradient]] * 40)
    assert all(np.isfinite(update.item()) and update.item() > 0 for update in updates)


def test_the_first_corrected_update_is_the_sign_of_the_gradient():
    updates, _ = run(scale_by_rms(bias_correction=True), [[3.0, -0.5]])
    np.testing.assert_allclose(updates[0], [1, -1], rtol=1e-5)


@pytest.mark.parametrize("make", [scale_by_rms, scale_by_stddev, scale_by_rss])
def test_no_gradient_gives_no_update(make):
    updates, _ = run(make(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0, 0]


def test_an_element_that_never_had_a_gradient_is_not_divided_by_zero():
    transform = scale_by_rss(0.0, 0.0)
    state = transform.init({"w": mx.zeros(2)})
    updates, state = transform.update({"w": mx.array([0.0, 2.0])}, state)
    assert updates["w"].tolist() == [0, 1]
    total = mx.grad(lambda g: transform.update({"w": g}, state)[0]["w"].sum())
    assert mx.isfinite(total(mx.zeros(2))).all().item()


@pytest.mark.parametrize("make", [scale_by_rms, scale_by_stddev, scale_by_rss])
def test_a_nan_shows(make):
    updates, _ = run(make(), [[float("nan"), 1.0]])
    assert mx.isnan(updates[0]).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("make", [scale_by_rms, scale_by_stddev, lambda: scale_by_rss(0.0)])
def test_squares_are_accumulated_in_float32(make, dtype):
    updates, state = run(make(), [[2.0**-14]], dtype)  # its square, 2**-28, is zero in float16
    accumulators = [leaf["w"] for leaf in state if leaf != ()]
    assert {leaf.dtype for leaf in accumulators} == {mx.float32} == {updates[0].dtype}
    assert accumulators[-1].item() > 0


def test_there_is_a_count_only_with_bias_correction():
    for make in (scale_by_rms, scale_by_stddev):
        assert run(make(), [[1.0]] * 3)[1].count == ()
        count = run(make(bias_correction=True), [[1.0]] * 3)[1].count
        assert (count.item(), count.dtype, count.shape) == (3, mx.int32, ())


def test_the_momentum_of_rmsprop_is_a_sum_of_steps():
    transform = rmsprop(0.5, decay=0.0, eps=0.0, momentum=0.5)
    assert [u.item() for u in run(transform, [[2.0], [4.0], [-8.0]])[0]] == [-0.5, -0.75, 0.125]


@pytest.mark.parametrize("make", [scale_by_rms, scale_by_stddev])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay": 1.0}, ValueError, "decay ... 1, got 1.0"),
        ({"decay": -0.5}, ValueError, "decay ... 0, got -0.5"),
        ({"decay": None}, TypeError, "decay ... number, got None"),
        ({"eps": float("nan")}, ValueError, "eps ... finite, got nan"),
        ({"eps": -1e-8}, ValueError, "eps ... 0, got -1e-08"),
        ({"initial_scale": -1}, ValueError, "initial_scale ... 0, got -1"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(make, options, error, message):
    with pytest.raises(error, match=parts(f"{make.__name__}: {message}")):
        make(**options)


def test_a_bad_sum_of_squares_is_refused():
    with pytest.raises(ValueError, match="scale_by_rss: initial_accumulator_value .* 0, got -1"):
        scale_by_rss(-1)
    with pytest.raises(ValueError, match="scale_by_rss: eps .* finite, got inf"):
        scale_by_rss(eps=float("inf"))
