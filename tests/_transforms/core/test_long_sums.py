"""Reductions over millions of elements are right to 1e-6; a sequential float32 sum is wrong by a fifth."""

import math

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import transforms, tree
from purestep._transforms.core.base import taking_extra
from purestep.transforms import orthogonalize

N = 2**25
GRADIENT, WEIGHT = np.float64(np.float32(0.3)), np.float64(np.float32(0.7))


@pytest.fixture(scope="module")
def ones():
    return mx.ones(N)


def test_a_norm_of_many_elements(ones):
    assert tree.norm({"w": ones}).item() == pytest.approx(N**0.5, rel=1e-6)
    assert tree.norm(0.3 * ones.reshape(4, -1)).item() == pytest.approx(GRADIENT * N**0.5, rel=1e-6)


def test_a_norm_of_many_leaves():
    leaves = [mx.full((100,), 0.3) for _ in range(3000)]
    assert tree.norm(leaves).item() == pytest.approx(GRADIENT * 300_000**0.5, rel=1e-6)
    tenth = np.float64(np.float32(0.1))
    assert tree.added([mx.array(0.1)] * 3001).item() == pytest.approx(tenth * 3001, rel=1e-6)
    assert tree.added([]).item() == 0


def test_a_clipped_flat_leaf_has_the_norm_asked_for(ones):
    clip = transforms.clip_by_global_norm(1.0)
    for transform in (clip, transforms.flatten(clip)):
        updates, _ = transform.update({"w": ones}, transform.init({"w": ones}))
        assert np.linalg.norm(np.asarray(updates["w"], np.float64)) == pytest.approx(1, rel=2e-6)


@pytest.mark.parametrize(
    ("transform", "want"),
    [
        (transforms.clip_by_block_rms(0.1), 0.1),
        (transforms.scale_by_trust_ratio(), WEIGHT),
        (transforms.scale_by_param_block_norm(), GRADIENT * WEIGHT * N**0.5),
        (transforms.scale_by_param_block_rms(), GRADIENT * WEIGHT),
        (transforms.adaptive_grad_clip(0.1), 0.1 * WEIGHT),
        (transforms.normalize_by_update_norm(eps=0.0), N**-0.5),
        (transforms.scale_by_novograd(eps=0.0), N**-0.5),
        (transforms.scale_by_polyak(max_learning_rate=1e9), GRADIENT / (GRADIENT**2 * N)),
        (transforms.scale_by_dog(("distance", 1.0)), N**-0.5),
        (transforms.scale_by_distance_over_gradients(1.0), (1 + WEIGHT * N**0.5) * N**-0.5),
    ],
)
def test_one_long_parameter(ones, transform, want):
    params = {"w": 0.7 * ones}
    update = taking_extra(transform)  # scale_by_polyak receives the loss, 1
    updates, _ = update({"w": 0.3 * ones}, transform.init(params), params, value=mx.array(1.0))
    assert updates["w"][7].item() == pytest.approx(want, rel=2e-6)


def test_a_distance_from_the_start(ones):
    transform = transforms.scale_by_dowg(1e-4)
    state = transform.init({"w": ones})
    _, state = transform.update({"w": ones}, state, {"w": 1.5 * ones})
    assert state.estim_sq_dist.item() == pytest.approx(0.25 * N, rel=2e-6)


def test_sums_of_products(ones):
    transform = ps.optimizers.prodigy(estim_lr0=1.0)
    state = transform.init({"w": ones})
    _, state = transform.update({"w": 0.3 * ones}, state, {"w": 0.3 * ones})
    # l = sqrt(1 - 0.999) / (1 - 0.9); r = l * sum(0.3 * 0.7)
    want = 0.001**0.5 / 0.1 * GRADIENT * (1 - GRADIENT) * N
    assert state.numerator_weighted.item() == pytest.approx(want, rel=1e-5)


def test_means_along_a_long_axis():
    g = mx.full((2, 2**22), 0.3)
    transform = transforms.scale_by_factored_rms(min_dim_size_to_factor=2)
    updates, state = transform.update({"w": g}, transform.init({"w": g}))
    assert state.v_row["w"][0].item() == pytest.approx(GRADIENT**2, rel=1e-6)
    assert updates["w"][1, 5].item() == pytest.approx(1, rel=2e-6)
    centered, _ = transforms.centralize().update({"w": g}, ())
    assert mx.abs(centered["w"]).max().item() < 3e-7


def test_the_norm_of_a_matrix_to_orthogonalize():
    # One step maps a row of equal numbers to a row of norm p(1), where p is the odd polynomial.
    a, b, c = 3.4445, -4.7750, 2.0315
    near = orthogonalize(mx.full((1, 2**22), 0.3), ns_steps=1)
    assert near[0, 3].item() == pytest.approx((a + b + c) * 2**-11, rel=2e-5)


SLOPES = {
    "norm": lambda x: tree.norm({"w": x}),
    "clip": lambda x: transforms.clip_by_global_norm(1.0).update({"w": x}, ())[0]["w"].sum(),
    "block": lambda x: transforms.clip_by_block_rms(1.0).update({"w": x}, ())[0]["w"].sum(),
    "adaptive": lambda x: transforms.adaptive_grad_clip(0.1).update({"w": x}, (), {"w": x})[0]["w"].sum(),
    "trust": lambda x: transforms.scale_by_trust_ratio().update({"w": x}, (), {"w": x})[0]["w"].sum(),
    "dog": lambda x: moved(transforms.scale_by_dog(("distance", 0.1)), x),
    "dowg": lambda x: moved(transforms.scale_by_dowg(), x),
    "layerwise dog": lambda x: moved(transforms.scale_by_distance_over_gradients(), x),
}


def moved(transform, x):
    state = transform.init({"w": mx.zeros(3)})
    return transform.update({"w": x + 1}, state, {"w": x})[0]["w"].sum()


@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_of_a_norm_of_zeros_is_not_nan(name):
    assert mx.isfinite(mx.grad(SLOPES[name])(mx.zeros(3))).all()


@pytest.mark.parametrize("shape", [(512, 64), (64, 64), (1024, 4096), (2**20,)])
def test_a_norm_of_equal_numbers_in_rows_of_every_length(shape):
    for value in np.random.default_rng(3).uniform(1, 2, 12).astype(np.float32):
        right = float(value) * math.prod(shape) ** 0.5
        assert tree.norm([mx.full(shape, float(value))]).item() == pytest.approx(right, rel=1e-6)
