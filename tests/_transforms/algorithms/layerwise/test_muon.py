"""scale_by_muon, scale_by_shape, and the split between matrices and the rest."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.optimizers import adamw, muon
from purestep.transforms import (
    MuonDimensionNumbers,
    matrices_and_rest,
    orthogonalize,
    scale,
    scale_by_muon,
    scale_by_shape,
    trace,
)
from tests.refusals import parts
from tests.running import run

PARAMS = {"w": mx.ones((2, 3)), "b": mx.ones(3), "none": None, "conv": mx.ones((2, 3, 2))}


def matrix(*shape, seed=0):
    """Return normal numbers."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_is_the_orthogonal_part_of_the_corrected_mean(nesterov):
    gradients = [matrix(3, 4, seed=seed) for seed in range(3)]
    updates, _ = run(scale_by_muon(beta=0.5, nesterov=nesterov), gradients)
    mu = mx.zeros((3, 4))
    for t, (g, got) in enumerate(zip(gradients, updates, strict=True), start=1):
        mu = 0.5 * mu + 0.5 * g
        mean = mu / (1 - 0.5**t)
        if nesterov:
            mean = 0.5 * mu / (1 - 0.5 ** (t + 1)) + 0.5 * g / (1 - 0.5**t)
        np.testing.assert_allclose(got, orthogonalize(mean), atol=1e-4)


def test_adaptive_multiplies_by_the_dual_norm():
    g = matrix(3, 4)
    (update,), _ = run(scale_by_muon(nesterov=False, adaptive=True), [g])
    near = orthogonalize(g)
    np.testing.assert_allclose(update, (g * near).sum() * near, rtol=1e-4, atol=1e-5)


def test_options_of_the_iteration_reach_it():
    g = matrix(3, 4)
    options = {
        "ns_steps": 2,
        "preconditioning": "schatten",
        "ns_dtype": mx.bfloat16,
        "ns_coeffs": (2.0, -1.5, 0.5),
    }
    (update,), _ = run(scale_by_muon(nesterov=False, **options), [g])
    np.testing.assert_allclose(update, orthogonalize(g, **options), atol=1e-2)
    (table,), _ = run(scale_by_muon("dion", nesterov=False), [g])
    np.testing.assert_allclose(table, orthogonalize(g, ns_coeffs="dion"), atol=1e-4)


def test_the_mean_is_float32_for_bfloat16_parameters_unless_asked():
    (update,), state = run(scale_by_muon(), [matrix(2, 3)], mx.bfloat16)
    assert (update.dtype, state.mu["w"].dtype, state.count.item()) == (mx.float32, mx.float32, 1)
    (update,), state = run(scale_by_muon(mu_dtype=mx.bfloat16), [matrix(2, 3)])
    assert (update.dtype, state.mu["w"].dtype) == (mx.float32, mx.bfloat16)


def test_a_wide_matrix_keeps_its_size_and_a_tall_one_grows_with_its_outputs():
    for shape, factor in [((3, 4), 1.0), ((4, 3), (4 / 3) ** 0.5), ((9, 1), 3.0), ((2, 0), 2**0.5)]:
        updates, _ = scale_by_shape().update({"w": mx.ones(shape)}, ())
        np.testing.assert_allclose(updates["w"], np.full(shape, factor), rtol=1e-6)


def test_consistent_rms_makes_orthogonal_updates_of_that_root_mean_square():
    for shape in [(4, 16), (16, 4)]:
        near = orthogonalize(matrix(*shape), ns_coeffs=(1.875, -1.25, 0.375), ns_steps=20)
        updates, _ = scale_by_shape(consistent_rms=0.2).update({"w": near}, ())
        assert mx.sqrt(mx.square(updates["w"]).mean()).item() == pytest.approx(0.2, rel=1e-3)


def test_the_factor_of_the_shape_knows_the_axes_and_keeps_the_dtype():
    axes = MuonDimensionNumbers(reduction_axis=0, output_axis=1)  # [in, out]
    updates, _ = scale_by_shape(lambda path, leaf: axes).update({"w": mx.ones((1, 4), mx.bfloat16)}, ())
    assert (updates["w"].dtype, updates["w"].tolist()) == (mx.bfloat16, [[2.0] * 4])


@pytest.mark.parametrize("transform", [scale_by_muon(), scale_by_shape()])
def test_a_leaf_that_is_no_matrix_is_refused_with_its_path(transform):
    with pytest.raises(ValueError, match=parts(": every leaf ... matrix, got shape (3,) at b")):
        transform.update({"b": mx.ones(3)}, transform.init({"b": mx.ones(3)}))


def test_each_half_sees_its_own_leaves_and_none_for_the_others():
    split = matrices_and_rest(trace(0.5), trace(0.9))
    state = split.init(PARAMS)
    assert ps.tree.paths(state.matrices.trace) == ["w"]
    assert ps.tree.paths(state.rest.trace) == ["b", "conv"]
    assert list(state.rest.trace) == list(PARAMS)
    for _ in range(2):
        updates, state = split.update(PARAMS, state, PARAMS)
    assert [u.reshape(-1)[0].item() for u in ps.tree.leaves(updates)] == pytest.approx([1.5, 1.9, 1.9])
    assert ps.tree.alike(updates, PARAMS)


def test_the_split_follows_a_function_of_path_and_leaf_or_a_mask():
    for matrices in (
        lambda path, leaf: path in ("w", "conv"),
        {"w": True, "b": False, "none": None, "conv": True},
    ):
        split = matrices_and_rest(scale(2.0), scale(3.0), matrices)
        updates, _ = split.update(PARAMS, split.init(PARAMS))
        assert [u.reshape(-1)[0].item() for u in ps.tree.leaves(updates)] == [2.0, 3.0, 2.0]


def test_extra_arguments_reach_both_halves():
    seen = []

    def noting(name):
        def update(updates, state, params=None, *, value):
            seen.append((name, value, params is None))
            return updates, state

        return ps.GradientTransform(lambda params: (), update)

    split = matrices_and_rest(noting("matrices"), noting("rest"))
    split.update(PARAMS, split.init(PARAMS), value=7)
    split.update(PARAMS, split.init(PARAMS), PARAMS, value=8, other=9)
    assert seen == [("matrices", 7, True), ("rest", 7, True), ("matrices", 8, False), ("rest", 8, False)]


def test_a_mask_or_params_built_differently_are_refused():
    with pytest.raises(ValueError, match=r"tree.map: the tree .*none, conv\) .* \(w\)"):
        matrices_and_rest(scale(1.0), scale(1.0), {"w": True}).init(PARAMS)
    split = matrices_and_rest(scale(1.0), scale(1.0))
    with pytest.raises(ValueError, match="matrices_and_rest: b .* updates, not in params"):
        split.update(PARAMS, split.init(PARAMS), {"w": PARAMS["w"]})
    with pytest.raises(TypeError, match="matrices_and_rest: on_rest .* GradientTransform"):
        matrices_and_rest(scale(1.0), scale)


def test_a_decay_mask_is_for_all_parameters_and_may_name_a_subtree():
    params = {"block": {"w": mx.ones((2, 3)), "b": mx.ones(3)}, "head": mx.ones((2, 2))}
    zeros = ps.tree.zeros_like(params)
    for mask in ({"block": {"w": True, "b": False}, "head": False}, {"block": True, "head": False}):
        transform = muon(0.1, weight_decay=0.5, weight_decay_mask=mask)
        updates, _ = transform.update(zeros, transform.init(params), params)
        assert mx.allclose(updates["block"]["w"], mx.full((2, 3), -0.05))
        assert not mx.any(updates["block"]["b"])
        assert not mx.any(updates["head"])
    transform = muon(0.1, weight_decay=0.5, weight_decay_mask={"head": True})
    with pytest.raises(ValueError, match=r"mask .*got a dict of \(head\)"):
        transform.update(zeros, transform.init(params), params)


def test_muon_trains_matrices_and_leaves_the_rest_to_adamw():
    gradients = ps.tree.map(lambda p: matrix(*p.shape), PARAMS)
    transform = muon(0.1, adam_learning_rate=0.3, nesterov=False)
    updates, state = transform.update(gradients, transform.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w"], -0.1 * orthogonalize(gradients["w"]), atol=1e-6)
    alone = adamw(0.3, weight_decay=0.0)
    rest = {"b": gradients["b"], "conv": gradients["conv"]}
    want, _ = alone.update(rest, alone.init(rest), {"b": PARAMS["b"], "conv": PARAMS["conv"]})
    np.testing.assert_allclose(updates["b"], want["b"], rtol=1e-6)
    np.testing.assert_allclose(updates["conv"], want["conv"], rtol=1e-6)
    assert [rate.item() for _, rate in ps.tree.fields(state, "learning_rate")] == pytest.approx([0.1, 0.3])


def test_decay_is_decoupled_and_of_each_group_its_own():
    zeros = ps.tree.zeros_like(PARAMS)
    transform = muon(0.1, weight_decay=0.5, adam_weight_decay=0.25)
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    for name, want in (("w", -0.05), ("b", -0.025), ("conv", -0.025)):
        np.testing.assert_allclose(updates[name], np.full(PARAMS[name].shape, want), rtol=1e-6)
    spared = muon(
        0.1, weight_decay=0.5, weight_decay_mask={"w": False, "b": True, "none": None, "conv": True}
    )
    updates, _ = spared.update(zeros, spared.init(PARAMS), PARAMS)
    assert not updates["w"].any().item()


def test_a_square_weight_is_decayed_by_its_own_rate_and_not_through_the_iteration():
    transform = muon(0.1, weight_decay=10.0, nesterov=False)
    params = {"w": 100 * mx.eye(2)}
    updates, _ = transform.update({"w": matrix(2, 2)}, transform.init(params), params)
    want = -0.1 * (orthogonalize(matrix(2, 2)) + 1000 * mx.eye(2))
    np.testing.assert_allclose(updates["w"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_muon(beta=1.0), "scale_by_muon: beta ... 1, got 1.0"),
        (lambda: scale_by_muon(ns_steps=0), "scale_by_muon: ns_steps ... 1, got 0"),
        (lambda: scale_by_muon(eps=float("nan")), "scale_by_muon: eps ... finite, got nan"),
        (
            lambda: scale_by_muon(preconditioning="no"),
            "scale_by_muon: preconditioning ... schatten, got 'no'",
        ),
        (lambda: scale_by_shape(consistent_rms=-1), "scale_by_shape: consistent_rms ... 0, got -1"),
        (lambda: muon(-0.1), "learning_rate ... 0, got -0.1"),
        (lambda: muon(0.1, weight_decay=-1), "weight_decay ... 0, got -1"),
        (lambda: muon(0.1, adam_b2=1.0), "b2 ... 1, got 1.0"),
    ],
)
def test_a_bad_argument_is_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
