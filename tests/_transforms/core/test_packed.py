"""Packed parameters under every transform: the same results as those of the model's own tree."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from tests.catalogue import CATALOGUE
from tests.trees import array, like, same_bits

PARAMS = {
    "a": array(0, (4, 6), mx.float32),
    "layers": [
        {"w": array(1, (2, 3, 4), mx.float32), "b": array(2, (5,), mx.float32)},
        {},
        {"w": 3 * array(6, (3, 5), mx.float32), "b": 3 * array(7, (4,), mx.float32)},
        {"w": 7 * array(8, (5, 3), mx.float32)},
    ],
    "embed": array(3, (7, 4), mx.bfloat16),
    "scale": array(4, (), mx.float32),
    "none": None,
    "half": (array(5, (9,), mx.bfloat16),),
}


def fine(path, leaf):
    """Groups within which every mask of the catalogue is uniform."""
    names = ["embed"] if "embed" in path else []
    return "_".join(["p", str(leaf.ndim), *names, *(["a"] if "a" in path else [])])


def trained(transform, params, steps=3):
    state, seen = transform.init(params), []
    update = transforms.named_chain(("it", transform)).update  # as a member: it takes any extra argument
    for seed in range(steps):
        gradients = like(ps.unpacked(params), seed)
        if isinstance(params, ps.Packed):
            gradients = type(params)(*params.layout.pack(gradients))
        extra = {"value": mx.array(0.5), "weight": mx.array(2.0), "gradients": gradients}
        updates, after = update(gradients, {"it": state}, params, **extra)
        state = after["it"]
        params = ps.apply_updates(params, updates)
        seen.append((params, state))
    return seen


def close(got, want):
    def one(path, a, b):
        assert a.shape == b.shape, path
        assert a.dtype == b.dtype, path
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        assert mx.allclose(a, b, rtol=2e-6, atol=1e-7, equal_nan=True).item(), (path, a, b)

    tree.map_with_path(one, got, want)


@pytest.mark.parametrize("name", CATALOGUE)
def test_packed_parameters_train_as_plain_ones(name):
    packed = trained(CATALOGUE[name](), ps.packed(PARAMS, fine))
    for got, want in zip(packed, trained(CATALOGUE[name](), PARAMS), strict=True):
        close(ps.unpacked(got), want)
        assert isinstance(got[0], ps.Packed)


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("adamw", True),
        ("clip, then adamw", True),
        ("lion", True),
        ("sgd", True),
        ("averaged", True),
        ("accumulate", True),
        ("skip_nonfinite", True),
        ("inject_hyperparams", True),
        ("master_weights", True),
        ("schedule_free_adamw", True),
        ("scale_by_novograd", False),
        ("scale_by_sm3", False),
        ("scale_by_factored_rms", False),
        ("flatten", False),
    ],
)
def test_only_elementwise_transforms_keep_vectors(name, vectors):
    state = CATALOGUE[name]().init(ps.packed(PARAMS, fine))
    assert (ps.unpacked(state) is not state) == vectors


def test_a_raw_transform_receives_the_models_own_trees():
    seen = []

    def update(updates, state, params=None):
        seen.append((tree.paths(updates), tree.paths(params)))
        return tree.map(lambda u: u / (1 + u.ndim), updates), tree.map(mx.add, state, updates)

    raw = ps.GradientTransform(tree.zeros_like, update)
    both = ps.chain(transforms.scale(2.0), raw)
    packed = ps.packed(PARAMS)
    state = both.init(packed)
    assert tree.paths(state) == tree.paths(((), PARAMS))
    updates, state = both.update(packed, state, packed)
    assert seen == [(tree.paths(PARAMS), tree.paths(PARAMS))]
    want = raw.update(tree.map(lambda p: 2 * p, PARAMS), tree.zeros_like(PARAMS), PARAMS)
    assert type(updates) is type(packed)
    assert same_bits(ps.unpacked(updates), want[0])
    assert same_bits(state[1], want[1])


def test_a_transform_that_only_looks_returns_the_vectors_that_came():
    packed = ps.packed(PARAMS)
    transform = transforms.snapshot("norm", ps.tree.norm)
    updates, state = transform.update(packed, transform.init(packed))
    assert updates is packed
    assert tree.paths(state) == ["measurement.norm"]


def test_stateless_functions_choose_what_they_receive():
    packed, seen = ps.packed(PARAMS), []

    def fn(updates, params):
        seen.append(type(updates))
        return updates

    for elementwise in (True, False):
        transforms.stateless(fn, elementwise=elementwise).update(packed, ())
    assert seen == [type(packed), dict]


def test_a_vector_has_at_most_so_many_elements():
    params = {"a": mx.ones((2, 3)), "b": mx.ones((2, 2)), "c": mx.ones((4, 5)), "d": mx.ones((1, 2))}
    found = ps.packed(params, largest=10)
    sizes = {name: getattr(found, name).size for name in found._fields}
    assert sizes == {"matrices_float32": 10, "matrices_float32_2": 20, "matrices_float32_3": 2}
    assert ps.tree.spec(ps.unpacked(found)) == ps.tree.spec(params)
    assert type(ps.packed(params)) is not type(found)
    with pytest.raises(ValueError, match="packed: largest must be"):
        ps.packed(params, largest=0)


def test_a_mask_that_splits_a_vector_is_refused_with_the_two_paths():
    packed = ps.packed(PARAMS)
    transform = optimizers.adamw(0.1, mask=lambda path, leaf: path != "embed" and leaf.ndim > 0)
    with pytest.raises(
        ValueError,
        match=r"add_decayed_weights: mask gives .* for .*, which share the vector rest_float32; "
        r"ps.packed\(params, groups=...\) with this mask separates them",
    ):
        transform.update(packed, transform.init(packed), packed)
    apart = ps.packed(PARAMS, lambda path, leaf: path != "embed" and leaf.ndim > 0)
    assert apart._fields == ("others_bfloat16", "others_float32", "selected_bfloat16", "selected_float32")
    transform.update(apart, transform.init(apart), apart)


def test_labels_that_split_a_vector_are_refused():
    split = transforms.partition(
        {"a": transforms.scale(1.0), "b": transforms.scale(2.0)}, [("*w", "a"), ("*", "b")]
    )
    with pytest.raises(ValueError, match="partition: param_labels gives .* which share the vector matrices_"):
        split.init(ps.packed(PARAMS))


@pytest.mark.parametrize(
    "groups",
    [
        {"a": True, "layers": False, "embed": True, "scale": True, "none": None, "half": False},
        transforms.by_path("layers.*"),
        transforms.matrices,
        lambda path, leaf: leaf.size > 9,
        True,
    ],
)
def test_groups_are_masks_of_any_form(groups):
    packed = ps.packed(PARAMS, groups)
    assert {name.split("_")[0] for name in packed._fields} <= {"selected", "others"}
    assert same_bits(ps.unpacked(packed), PARAMS)
    masked = transforms.masked(transforms.scale(2.0), groups)
    updates, _ = masked.update(packed, masked.init(packed), packed)
    want = masked.update(PARAMS, masked.init(PARAMS), PARAMS)[0]
    assert same_bits(ps.unpacked(updates), want)


@pytest.mark.parametrize(
    ("params", "groups", "error", "match"),
    [
        ({}, None, ValueError, "packed: params must hold at least one array, got none"),
        ({"n": mx.array([1, 2])}, None, ValueError, "packed: params must be floating, got .*int32 at n"),
        ({"w": 1.0}, None, TypeError, "packed: params must hold arrays, got float at w"),
        (ps.packed(PARAMS), None, ValueError, "packed: params must be the model's own tree"),
        ([ps.packed(PARAMS)], None, ValueError, "packed: params must be the model's own tree"),
        (PARAMS, lambda path, leaf: 3, TypeError, "packed: groups must hold names or booleans, got 3 at a"),
        (PARAMS, lambda path, leaf: "a b", ValueError, "packed: groups must hold names of letters"),
        (PARAMS, {"a": True}, ValueError, "packed: groups must be built like the parameters"),
    ],
)
def test_bad_input_is_refused(params, groups, error, match):
    with pytest.raises(error, match=match):
        ps.packed(params, groups)


def test_gradients_of_another_layout_are_refused():
    transform = optimizers.adam(0.1)
    packed, other = ps.packed(PARAMS), ps.packed(PARAMS, fine)
    state = transform.init(packed)
    for updates, params in ((other, packed), (PARAMS, packed), (packed, PARAMS)):
        with pytest.raises(ValueError, match="chain: the tree is a .* in updates, a .* in params"):
            transform.update(updates, state, params)
    with pytest.raises(ValueError, match=r"chain: state.*mu is"):
        transform.update(other, state, other)


def test_updates_that_a_users_transform_has_written_into_are_packed():
    def update(updates, state, params=None):
        updates["w"] *= 3.0
        return updates, state

    params = ps.packed({"w": mx.ones((2, 2)), "b": mx.ones(2)})
    transform = ps.GradientTransform(lambda params: (), update)
    for made in (transform, ps.chain(transform)):
        updates, _ = made.update(params, made.init(params), params)
        assert ps.unpacked(updates)["w"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert params.matrices_float32.tolist() == [1.0] * 4
