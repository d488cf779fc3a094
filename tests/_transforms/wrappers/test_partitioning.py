"""partition and group_table: every parameter belongs to one group with its own transform."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep.transforms import group_table, masked, partition, set_to_zero
from tests._transforms.walking import draws, steps_of
from tests.refusals import parts
from tests.trees import like, same_bits

PARAMS = {
    "fc": {"weight": mx.ones((2, 3)), "bias": mx.ones(3, mx.bfloat16)},
    "norm": [mx.ones(3), None],
    "scale": mx.array(2.0),
}
GRADIENTS = like(PARAMS, 0)
LABELS = {"fc": {"weight": "a", "bias": "b"}, "norm": ["b", None], "scale": "a"}


def third_step(transform):
    """Return the updates of the third step, and the state after it."""
    return steps_of(transform, draws(PARAMS, 3), PARAMS)[-1]


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        lambda params: LABELS,
        [("*.weight", "a"), ("scale", "a"), ("*", "b")],
        {"fc": {"weight": "a", "bias": "b"}, "norm": "b", "scale": "a"},
    ],
)
def test_each_group_gets_the_updates_of_its_transform_alone(labels):
    make = {"a": lambda: optimizers.adamw(0.1, weight_decay=0.3), "b": lambda: optimizers.sgd(0.2, 0.9)}
    updates, state = third_step(partition({label: fn() for label, fn in make.items()}, labels))
    for label, fn in make.items():
        alone, alone_state = third_step(masked(fn(), tree.map(lambda own, label=label: own == label, LABELS)))
        assert same_bits(state.inner_states[label], alone_state.inner_state)
        for (path, own), got, want in zip(
            tree.items(LABELS), tree.leaves(updates), tree.leaves(alone), strict=True
        ):
            if own == label:
                assert same_bits(got, want), path


def test_one_label_for_everything_is_the_transform_itself():
    updates, state = third_step(partition({"all": optimizers.adam(0.1)}, "all"))
    alone, alone_state = third_step(optimizers.adam(0.1))
    assert same_bits(updates, alone)
    assert same_bits(state.inner_states["all"], alone_state)


def test_a_norm_is_that_of_the_group():
    gradients = {"a": mx.array(3.0), "b": mx.array(4.0)}
    transform = partition(
        {"clip": transforms.clip_by_global_norm(1.0), "rest": ps.identity()}, {"a": "clip", "b": "rest"}
    )
    extra = {"gradients": gradients, "grad_norm": tree.norm(gradients)}
    updates, _ = transform.update(gradients, transform.init(gradients), gradients, **extra)
    assert (updates["a"].item(), updates["b"].item()) == (1.0, 4.0)


def test_the_first_matching_pattern_wins_and_a_group_may_be_empty():
    transform = partition(
        {"slow": transforms.scale(0.5), "none": set_to_zero(), "unused": ps.identity()},
        [("fc.weight", "slow"), ("fc.*", "none"), ("*", "slow")],
    )
    updates, _ = transform.update(GRADIENTS, transform.init(PARAMS))
    assert not updates["fc"]["bias"].any().item()
    assert same_bits(updates["fc"]["weight"], 0.5 * GRADIENTS["fc"]["weight"])


def test_labels_may_be_integers_and_a_tree_of_pairs_is_a_tree():
    for params, labels in (
        ([(mx.array(1.0), mx.array(1.0))], [("x", "y")]),
        ({"w": mx.array(1.0)}, [("*", "y")]),
    ):
        transform = partition({"x": transforms.scale(2.0), "y": transforms.scale(3.0)}, labels)
        updates, _ = transform.update(params, transform.init(params))
        assert tree.leaves(updates)[-1].item() == 3.0
    numbered = partition({0: set_to_zero(), 1: ps.identity()}, {"w": 1})
    assert list(numbered.init(params).inner_states) == [0, 1]


def test_the_trained_state_works_in_a_step():
    def loss_fn(params, batch, rng):
        return mx.square(params["w"] * batch["x"] + params["b"]).mean()

    transform = partition(
        {"adam": ps.chain(transforms.clip_by_global_norm(1.0), optimizers.adam(0.1)), "still": set_to_zero()},
        [("w", "adam"), ("*", "still")],
    )
    state = ps.TrainState.create({"w": mx.array(1.0), "b": mx.array(1.0)}, transform)
    new, metrics = ps.train_step(loss_fn, transform)(state, {"x": mx.array([1.0, 2.0])})
    assert new.params["b"].item() == 1.0
    assert new.params["w"].item() == pytest.approx(0.9, rel=1e-5)
    assert metrics["learning_rate"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("transforms_", "labels", "error", "message"),
    [
        ({"a": ps.identity()}, LABELS, ValueError, "partition: param_labels ... fc.bias ... 'b'; ... 'a'"),
        (
            {"a": ps.identity()},
            [("fc.*", "a")],
            ValueError,
            "partition: no pattern of param_labels ... norm.0, scale;",
        ),
        ({"a": ps.identity()}, [("*", "c")], ValueError, "param_labels ... fc.weight ... 'c'; ... 'a'"),
        (
            {"a": ps.identity()},
            {"fc": "a"},
            ValueError,
            "param_labels ... dict of (fc) ... dict of (fc, norm, scale)",
        ),
        (
            {"a": ps.identity()},
            {**LABELS, "fc": None},
            ValueError,
            "param_labels ... None ... dict of (weight, bias) at fc",
        ),
        (
            {"a": ps.identity()},
            {"fc": "a", "norm": "a", "scale": True},
            TypeError,
            "param_labels at scale: ... string ... integer, got True",
        ),
        ({"a": ps.identity}, "a", TypeError, "partition: transforms['a'] ... GradientTransform"),
        ({1.5: ps.identity()}, "a", TypeError, "partition: transforms: ... string ... integer, got 1.5"),
        ({}, "a", TypeError, "partition: transforms ... dict ... {}"),
        (
            {"a": ps.identity()},
            [("*", 3.5)],
            TypeError,
            "param_labels at fc.weight: ... string ... integer, got 3.5",
        ),
    ],
)
def test_a_parameter_without_a_known_label_is_refused_with_its_path(transforms_, labels, error, message):
    with pytest.raises(error, match=parts(message)):
        partition(transforms_, labels).init(PARAMS)


def test_the_table_shows_each_parameter_and_the_totals():
    assert group_table(PARAMS, [("*.weight", "decay"), ("*", "rest")]).splitlines() == [
        "path       label  shape",
        "fc.weight  decay  (2, 3)",
        "fc.bias    rest   (3,)",
        "norm.0     rest   (3,)",
        "scale      rest   ()",
        "",
        "label  arrays  parameters",
        "decay       1           6",
        "rest        3           7",
        "total       4          13",
    ]


def test_the_table_refuses_what_partition_refuses():
    with pytest.raises(ValueError, match="group_table: no pattern of param_labels .* fc.weight"):
        group_table(PARAMS, [("nothing", "a")])
