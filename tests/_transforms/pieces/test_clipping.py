"""clip_by_global_norm: the bound, unchanged bits within it, and norms that are not finite."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import tree
from purestep.transforms import clip_by_global_norm
from tests.refusals import BAD_NUMBERS, parts


def clip(updates, max_norm):
    return clip_by_global_norm(max_norm).update(updates, ())[0]


def draw(seed, dtype=mx.float32):
    rng = np.random.default_rng(seed)
    return {"a": [mx.array(rng.normal(size=(3, 4))).astype(dtype)], "b": mx.array(rng.normal()).astype(dtype)}


def test_updates_beyond_the_bound_are_scaled_down_together():
    clipped = clip({"a": mx.array([3.0, 0.0]), "b": mx.array(-4.0)}, 1.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], -0.8, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_norm_after_clipping_is_the_bound(seed):
    assert tree.norm(clip(draw(seed), 0.25)).item() == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("slack", [1.0, 1.0001, 1e6])
def test_updates_within_the_bound_pass_to_the_bit(dtype, slack):
    for seed in range(20):
        updates = draw(seed, dtype)
        clipped = clip(updates, tree.norm(updates).item() * slack)
        for got, want in zip(tree.leaves(clipped), tree.leaves(updates), strict=True):
            assert got.dtype == dtype
            assert mx.array_equal(got, want).item()


def test_zeros_stay_zeros_with_their_signs():
    clipped = clip({"a": mx.array([0.0, -0.0])}, 1.0)["a"]
    assert clipped.view(mx.uint32).tolist() == [0, 2**31]


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_one_element_that_is_not_finite_makes_every_update_nan(bad, max_norm):
    updates = {"a": mx.array([1.0, bad]), "b": mx.array(1.0), "c": mx.array(2.0, mx.bfloat16)}
    for leaf in tree.leaves(clip(updates, max_norm)):
        assert mx.isnan(leaf).all().item()


def test_the_norm_of_2000_bfloat16_leaves_is_that_of_float32():
    ones = [mx.ones(4, mx.bfloat16)] * 2000
    clipped = clip(ones, 1.0)
    assert {leaf.dtype for leaf in clipped} == {mx.bfloat16}
    want = mx.array(1 / np.sqrt(8000)).astype(mx.bfloat16).item()
    assert all(leaf.tolist() == [want] * 4 for leaf in clipped)


def test_containers_none_and_empty_leaves_stay():
    clipped = clip({"a": (mx.array(2.0), None), "b": [], "c": mx.zeros((0, 3))}, 1.0)
    assert (clipped["a"][0].item(), clipped["a"][1], clipped["b"]) == (1.0, None, [])
    assert clipped["c"].shape == (0, 3)


def test_a_tree_without_leaves_passes():
    assert clip({}, 1.0) == {}


@pytest.mark.parametrize(
    ("max_norm", "error", "message"),
    [
        (-1.0, ValueError, "... 0, got -1.0"),
        (0, ValueError, "... 0, got 0"),
        *BAD_NUMBERS,
    ],
)
def test_a_bad_bound_is_refused(max_norm, error, message):
    with pytest.raises(error, match=parts(f"clip_by_global_norm: max_norm {message}")):
        clip_by_global_norm(max_norm)
