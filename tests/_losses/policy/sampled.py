"""Recorded completions of the policy losses."""

import mlx.core as mx
import numpy as np

from tests.references import recorded

RECORD = recorded("policy")
INPUTS = {key.split("/")[1]: part for key, part in RECORD.items() if key.startswith("inputs/")}
RTOL, ATOL = 1e-5, 1e-6


def poisoned(name):
    """Return an input with NaN, and infinities of both signs, outside the mask."""
    bad = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), INPUTS[name].shape)
    return mx.array(np.where(INPUTS["mask"] > 0, INPUTS[name], bad))


def assert_recorded(name, loss, gradient, weight=None):
    """Compare a loss, its gradient and its weight with the record."""
    np.testing.assert_allclose(loss.item(), RECORD[f"{name}/value"].item(), RTOL)
    np.testing.assert_allclose(gradient, RECORD[f"{name}/gradient"], RTOL, ATOL)
    if weight is not None:
        assert weight.item() == RECORD[f"{name}/weight"].item()
