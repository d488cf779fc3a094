"""scale_by_width: which parameters it selects, and their updates."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.transforms import hidden_matrices, scale_by_width
from tests._transforms.algorithms.layerwise.language_model import PARAMS
from tests.refusals import parts


@pytest.mark.parametrize(
    "mask",
    [
        lambda path, leaf: hidden_matrices(path, leaf) and not path.startswith("lm_head"),
        ps.tree.map_with_path(lambda path, _: "attention.weight" in path, PARAMS),
        lambda params: ps.tree.map_with_path(lambda path, _: "attention.weight" in path, params),
    ],
)
def test_the_output_layer_may_be_left_out(mask):
    got, _ = scale_by_width(4.0, mask).update(PARAMS, ())
    scaled = [path for path, u in ps.tree.items(got) if u.astype(mx.float32).mean().item() == 0.25]
    assert scaled == ["layers.0.attention.weight"]
    assert all(u.dtype == p.dtype for u, p in zip(ps.tree.leaves(got), ps.tree.leaves(PARAMS), strict=True))


@pytest.mark.parametrize(
    ("path", "shape", "chosen"),
    [
        ("layers.0.weight", (2, 3), True),
        ("conv.weight", (2, 3, 3, 4), True),
        ("layers.0.bias", (2,), False),
        ("scale", (), False),
        ("wte.weight", (2, 3), False),
        ("model.wpe", (2, 3), False),
        ("TokenEmbedding.weight", (2, 3), False),
        ("wtel.weight", (2, 3), True),
    ],
)
def test_embeddings_are_told_by_their_path(path, shape, chosen):
    assert hidden_matrices(path, mx.zeros(shape)) is chosen


def test_decay_may_stay_with_the_rate_that_was_tuned():
    transform = ps.chain(
        ps.transforms.scale_by_adam(),
        scale_by_width(4.0),
        ps.transforms.add_decayed_weights(0.5),
        ps.transforms.scale_by_learning_rate(0.1),
    )
    params = {"fc": mx.ones((2, 2))}
    got, _ = transform.update(params, transform.init(params), params)
    np.testing.assert_allclose(got["fc"], -0.1 * (0.25 + 0.5), 1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: scale_by_width(0.0), ValueError, "scale_by_width: width_mult ... 0, got 0.0"),
        (lambda: scale_by_width(float("nan")), ValueError, "scale_by_width: width_mult ... finite, got nan"),
        (
            lambda: scale_by_width(2.0, {"w": 1}).update({"w": mx.ones(1)}, ()),
            ValueError,
            "scale_by_width: mask ... True or False, got 1 at w",
        ),
    ],
)
def test_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
