"""Top-k and top-p truncation."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.data import truncated_logits
from tests.distributions import probabilities


@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 7, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.8, 0.999, 1.0])
def test_truncation_keeps_what_the_definition_keeps(top_k, top_p):
    logits = 3 * mx.random.normal((20, 7), key=mx.random.key(5))
    kept = np.isfinite(np.asarray(truncated_logits(logits, top_k=top_k, top_p=top_p)))
    expected = [probabilities(row, top_k=top_k, top_p=top_p) > 0 for row in np.asarray(logits)]
    np.testing.assert_array_equal(kept, expected)
    assert kept.any(axis=-1).all()


def test_truncation_of_equals_extremes_and_half_precision():
    equal = truncated_logits(mx.array([1.0, 2.0, 2.0, 2.0]), top_k=2)
    assert equal.tolist() == [-mx.inf, 2, 2, 2]
    assert truncated_logits(mx.zeros(4), top_p=0.5).tolist() == [0] * 4
    wide = truncated_logits(mx.array([1e4, -1e4, 9992.0], mx.float16), top_k=2, top_p=0.5)
    assert wide.dtype == mx.float32
    assert wide.tolist() == [10000, -mx.inf, -mx.inf]


def test_options_out_of_range_are_refused():
    with pytest.raises(TypeError, match="truncated_logits: logits .* floating, got mlx.core.int32"):
        truncated_logits(mx.array([1, 2]))
    with pytest.raises(TypeError, match="truncated_logits: logits .* array, got list"):
        truncated_logits([1.0, 2.0], top_k=1)
    with pytest.raises(ValueError, match=r"truncated_logits: logits .* \[..., vocab\] .* 1, got \(\)"):
        truncated_logits(mx.array(1.0), top_k=1)
    with pytest.raises(ValueError, match="truncated_logits: top_k .* 1, got -2"):
        truncated_logits(mx.zeros(3), top_k=-2)
    with pytest.raises(ValueError, match="truncated_logits: top_p .* 0, got 0"):
        truncated_logits(mx.zeros(3), top_p=0)
