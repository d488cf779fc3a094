"""masked, freeze, set_to_zero, by_path: where they apply, and the forms of a mask."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep.transforms import by_path, freeze, masked, set_to_zero
from tests.refusals import parts
from tests.trees import Pair, like, same_bits

PARAMS = {
    "layers": [{"weight": mx.ones((2, 3)), "bias": mx.ones(3)}, {"weight": mx.ones((3, 1)), "bias": None}],
    "scale": mx.array(2.0),
}
GRADIENTS = like(PARAMS, 0)
WEIGHTS = {"layers": [{"weight": True, "bias": False}, {"weight": True, "bias": None}], "scale": False}


def update(transform, gradients=GRADIENTS, params=PARAMS, **extra):
    return transform.update(gradients, transform.init(params), params, **extra)


@pytest.mark.parametrize(
    "mask",
    [
        WEIGHTS,
        lambda params: WEIGHTS,
        transforms.matrices,
        by_path("*.weight"),
        lambda path, leaf: path.endswith("weight"),
        lambda path, leaf: leaf.ndim == 2,
    ],
)
def test_unselected_updates_are_unchanged_for_every_form_of_mask(mask):
    updates, _ = update(masked(transforms.scale(2.0), mask))
    want = tree.map_with_path(lambda path, g: 2 * g if path.endswith("weight") else g, GRADIENTS)
    assert same_bits(updates, want)


def test_one_boolean_stands_for_a_subtree():
    updates, _ = update(masked(set_to_zero(), {"layers": [True, False], "scale": False}))
    assert same_bits(updates["layers"][1], GRADIENTS["layers"][1])
    assert not updates["layers"][0]["weight"].any().item()
    everything, _ = update(masked(set_to_zero(), True))
    assert not any(leaf.any().item() for leaf in tree.leaves(everything))


def test_the_inner_state_holds_the_selected_leaves_only():
    transform = masked(optimizers.adam(0.1), WEIGHTS)
    state = transform.init(PARAMS)
    assert tree.paths(state.inner_state[0].mu) == ["layers.0.weight", "layers.1.weight"]
    assert state.inner_state[0].mu["scale"] == ()
    _, new = update(transform)
    assert tree.alike(new, state)


def test_a_mask_and_its_complement_do_what_the_transform_does():
    inverse = tree.map(lambda m: not m, WEIGHTS)
    both = ps.chain(masked(optimizers.adam(0.1), WEIGHTS), masked(optimizers.adam(0.1), inverse))
    assert same_bits(update(both)[0], update(optimizers.adam(0.1))[0])


def test_a_masked_norm_is_that_of_the_selected_leaves_even_when_the_whole_norm_is_known():
    gradients = {"a": mx.array(3.0), "b": mx.array(4.0)}
    clip = masked(transforms.clip_by_global_norm(1.0), {"a": True, "b": False})
    extra = {"gradients": gradients, "grad_norm": tree.norm(gradients)}
    updates, _ = clip.update(gradients, clip.init(gradients), gradients, **extra)
    assert (updates["a"].item(), updates["b"].item()) == (1.0, 4.0)


def test_extra_arguments_built_like_the_updates_are_masked_and_others_are_not():
    seen = {}

    def note(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    inner = ps.GradientTransform(lambda params: (), note)
    reordered = {"scale": GRADIENTS["scale"], "layers": GRADIENTS["layers"]}
    update(masked(inner, WEIGHTS), hessian=reordered, value=3, other={"layers": [1]})
    assert tree.paths(seen["hessian"]) == ["layers.0.weight", "layers.1.weight"]
    assert (seen["value"], seen["other"]) == (3, {"layers": [1]})


def test_a_bare_array_is_a_tree_too():
    params = mx.array(1.0)
    for mask, want in ((True, 6.0), (False, 3.0)):
        transform = masked(transforms.scale(2.0), mask)
        updates, _ = transform.update(mx.array(3.0), transform.init(params), params, value=mx.array(0.0))
        assert updates.item() == want


def test_masking_keeps_the_containers_and_needs_no_params():
    params = Pair({"b": mx.array(1.0), "a": (mx.zeros(0), None)}, [])
    transform = masked(transforms.scale(2.0), lambda path, leaf: leaf.size > 0)
    updates, _ = transform.update(params, transform.init(params))
    assert type(updates) is Pair
    assert tree.alike(updates, params)
    assert updates.first["b"].item() == 2.0


def test_frozen_parameters_stay_to_the_bit_under_weight_decay_and_nan():
    gradients = tree.map(lambda g: mx.full(g.shape, mx.nan), GRADIENTS)
    transform = ps.chain(optimizers.adamw(0.1, weight_decay=0.5), freeze(by_path("*.bias", "scale")))
    updates, _ = update(transform, gradients)
    new = ps.apply_updates(PARAMS, updates)
    assert same_bits(new["scale"], PARAMS["scale"])
    assert same_bits(new["layers"][0]["bias"], PARAMS["layers"][0]["bias"])
    assert mx.isnan(new["layers"][0]["weight"]).all().item()


def test_masked_set_to_zero_is_freeze():
    assert same_bits(update(freeze(WEIGHTS))[0], update(masked(set_to_zero(), WEIGHTS))[0])


def test_freeze_has_no_state_and_refuses_a_wrong_mask_at_init():
    assert freeze(WEIGHTS).init(PARAMS) == ()
    with pytest.raises(ValueError, match=r"freeze: mask .* \(layers\) .* \(layers, scale\)"):
        freeze({"layers": True}).init(PARAMS)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_zeros_keep_the_dtype(dtype):
    assert set_to_zero().update(mx.ones(3, dtype), ())[0].dtype == dtype


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        (("*",), ["a.b", "a.c", "[0]", '"x.y"']),
        (("a.*",), ["a.b", "a.c"]),
        (("?.b",), ["a.b"]),
        (("[0]",), ["[0]"]),
        (("a.b", '"x.?"'), ["a.b", '"x.y"']),
    ],
)
def test_patterns_match_whole_paths_and_brackets_literally(patterns, selected):
    params = {"a": {"b": 1, "c": 2}, 0: 3, "x.y": 4}
    assert [path for path, yes in tree.items(by_path(*patterns)(params)) if yes] == selected


def test_by_path_works_as_a_weight_decay_mask():
    decay = transforms.add_decayed_weights(0.5, mask=by_path("layers.*"))
    updates, _ = update(decay)
    assert same_bits(updates["scale"], GRADIENTS["scale"])


def test_a_pattern_that_matches_nothing_is_refused_unless_it_may():
    message = "by_path: pattern '*.biass' ... none ... layers.0.weight, layers.0.bias"
    with pytest.raises(ValueError, match=parts(message)):
        freeze(by_path("*.weight", "*.biass")).init(PARAMS)
    assert not any(tree.leaves(by_path("*.biass", required=False)(PARAMS)))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"layers": True}, ValueError, "mask ... dict of (layers) ... dict of (layers, scale) ... tree"),
        ({"layers": [True], "scale": True}, ValueError, "mask ... list of (0) ... list of (0, 1) at layers"),
        ({"layers": True, "scale": [True]}, ValueError, "mask ... list of (0) ... leaf at scale"),
        ({"layers": True, "scale": None}, ValueError, "mask ... None ... leaf at scale"),
        (
            {"layers": (True, True), "scale": True},
            ValueError,
            "mask ... tuple of (0, 1) ... list of (0, 1) at layers",
        ),
        ({"layers": True, "scale": 1}, ValueError, "mask ... True or False, got 1 at scale"),
        (lambda path, leaf: None, ValueError, "mask ... None ... leaf at layers.0.weight"),
        (lambda params: "yes", ValueError, "mask ... True or False, got 'yes' at the tree"),
    ],
)
def test_a_mask_built_differently_is_refused_with_the_path(mask, error, message):
    with pytest.raises(error, match=parts(message)):
        masked(transforms.scale(1.0), mask).init(PARAMS)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="masked: inner .* GradientTransform"):
        masked(transforms.scale, WEIGHTS)
    with pytest.raises(ValueError, match="by_path: patterns .* one pattern"):
        by_path()
    with pytest.raises(TypeError, match="by_path: a pattern .* string, got 3"):
        by_path(3)
    broken = ps.GradientTransform(lambda params: (), lambda updates, state, params=None: ({}, state))
    with pytest.raises(ValueError, match="masked: .* no update for layers.0.weight"):
        update(masked(broken, WEIGHTS))
