"""The models of `train`: sizes, the choice of matrices, and samples."""

import re

import mlx.core as mx
import pytest

import purestep as ps
from purestep._loop.config.config import TrainConfig
from purestep.cli.training import models
from tests.refusals import parts


def test_the_transformer_has_the_sizes_of_the_settings_and_the_weights_of_the_seed():
    sizes = {"width": 16, "heads": 2, "layers": 3, "buckets": 8}
    data = models.Data(vocabulary=11, context=4, sizes=sizes)
    one, two, other = (models.build("transformer", TrainConfig(seed=seed), data) for seed in (1, 1, 2))
    shapes = {path: leaf.shape for path, leaf in ps.tree.items(one.params)}
    assert shapes["embedding.weight"] == (11, 16)
    assert shapes["ngrams.table.weight"] == (16, 16)
    assert shapes["blocks.2.up.weight"] == (32, 16)
    assert mx.array_equal(one.params["embedding"]["weight"], two.params["embedding"]["weight"])
    assert not mx.array_equal(one.params["embedding"]["weight"], other.params["embedding"]["weight"])
    chosen = {path for path, leaf in ps.tree.items(one.params) if one.hidden(path, leaf)}
    assert chosen == {path for path in shapes if path.startswith("blocks.") and "norm" not in path}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "sizes.layers ... 1, got 0"),
        ({"layers": "2"}, "sizes.layers ... integer, got '2'"),
        ({"heads": 5}, "sizes.width ... 2 * heads, 10, got 48"),
        ({"buckets": 12}, "sizes.buckets ... power of two, got 12"),
    ],
)
def test_sizes_that_no_transformer_has_are_refused(sizes, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        models.check_model("transformer", sizes)
    assert re.search(parts(f"train: {message}"), str(caught.value))


def test_a_sample_continues_the_last_window_and_depends_on_the_seed_alone():
    """The model predicts the token after the last one of its window: (token + window's length) mod 10."""

    def apply(params, tokens):
        positions = mx.arange(1, tokens.shape[1] + 1)
        return 50.0 * ((tokens + positions)[..., None] % 10 == mx.arange(10))

    options = {"count": 4, "context": 3, "seed": 0}
    want = [3, 6, 9, 2]  # windows of 2, 3, 3, 3 tokens: 1 + 2, 3 + 3, 6 + 3, 9 + 3
    assert models.continued(apply, {}, [5, 1], temperature=0.0, **options) == want
    assert models.continued(apply, {}, [5, 1], temperature=1.0, **options) == want
    flat = lambda params, tokens: mx.zeros((*tokens.shape, 10))  # noqa: E731
    drawn = models.continued(flat, {}, [1], temperature=1.0, **options)
    assert drawn == models.continued(flat, {}, [1], temperature=1.0, **options)
    assert drawn != models.continued(flat, {}, [1], temperature=1.0, **{**options, "seed": 1})
