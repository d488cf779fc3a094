"""Comparison of losses with recorded references, and the contract that all losses keep."""

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file

from tests.references import DIRECTORY

RECORD = {
    name: part
    for path in sorted(DIRECTORY.glob("losses_*.safetensors"))
    for name, part in load_file(path).items()
}
RTOL, ATOL = 1e-5, 1e-7


def cases(*losses):
    """Return the recorded cases of these losses, as `LOSS/CASE`."""
    found = dict.fromkeys(key.rpartition("/")[0] for key in RECORD)
    return [name for name in found if name.partition("/")[0] in losses]


def compare(name, loss, rtol=RTOL, atol=ATOL, rename=None, **options):
    """Compare value, weight and gradients; inputs of zero weight are set to NaN."""
    parts = {key[len(name) + 1 :]: part for key, part in RECORD.items() if key.startswith(f"{name}/")}
    grads = {key[5:]: part for key, part in parts.items() if key.startswith("grad.")}
    inputs = {
        (rename or {}).get(key, key): part
        for key, part in parts.items()
        if key not in ("value", "weight") and not key.startswith("grad.")
    }
    if "weights" in inputs:
        out = inputs["weights"] == 0
        assert out.any()
        assert not out.all()
        for key in grads:
            inputs[key] = inputs[key].copy()
            inputs[key][out] = np.nan
    arrays = {key: mx.array(part) for key, part in inputs.items()}

    def value(*differentiated):
        given = {**arrays, **dict(zip(grads, differentiated, strict=True))}
        return loss(**given, **options).value

    got, slopes = mx.value_and_grad(value, argnums=list(range(len(grads))))(*(arrays[key] for key in grads))
    slopes = slopes if len(grads) > 1 else [slopes]
    assert got.dtype == mx.float32
    np.testing.assert_allclose(got.item(), parts["value"], rtol, atol)
    np.testing.assert_allclose(loss(**arrays, **options).weight.item(), parts["weight"], 1e-6)
    for slope, (key, expected) in zip(slopes, grads.items(), strict=True):
        np.testing.assert_allclose(np.array(slope), expected, rtol, atol, err_msg=f"{name}: {key}")


def check_nothing_counts(loss, nan):
    """Check that a loss, its metrics, gradient and weight are zero at `nan`, of which nothing counts."""

    def valued(x):
        mean, metrics = loss(x)
        return mean.value, (mean, metrics)

    (value, (mean, metrics)), gradient = mx.value_and_grad(valued)(nan)
    assert (value.item(), mean.total.item(), mean.weight.item()) == (0, 0, 0)
    assert all(metric.value.item() == 0 for metric in metrics.values())
    assert mx.all(gradient == 0).item()


def check_contract(loss, *arrays, **options):
    """Check the rules for weights and for the first array, which the gradient is taken of.

    The mean is over weights. If every weight is zero, the loss and its gradient are zero. Halves of a batch
    merge to the whole. Half precision is computed in float32. `mx.vmap` equals a loop.
    """
    first, *rest = arrays
    whole = loss(*arrays, **options)
    rows = first.shape[0]
    units = round(whole.weight.item())
    assert whole.total.shape == whole.weight.shape == ()
    shape = next(
        shape for shape in (first.shape, first.shape[:-1], first.shape[:1]) if np.prod(shape) == units
    )

    poisoned = mx.full(first.shape, mx.nan)
    none = loss(poisoned, *rest, weights=mx.zeros(shape), **options)
    assert (none.total.item(), none.weight.item(), none.value.item()) == (0, 0, 0)
    slope = mx.grad(lambda x: loss(x, *rest, weights=mx.zeros(shape), **options).value)(poisoned)
    assert mx.all(slope == 0).item()
    doubled = loss(*arrays, weights=mx.full((1,) * len(shape), 2.0), **options)
    np.testing.assert_allclose(doubled.total.item(), 2 * whole.total.item(), 1e-5)
    np.testing.assert_allclose(doubled.weight.item(), 2 * units, 1e-6)

    half = first.astype(mx.bfloat16)
    low, slope = mx.value_and_grad(lambda x: loss(x, *rest, **options).value)(half)
    high = loss(half.astype(mx.float32), *rest, **options).value
    assert (low.dtype, slope.dtype) == (mx.float32, mx.bfloat16)
    np.testing.assert_allclose(low.item(), high.item(), 1e-5, 1e-7)

    empty = loss(*(array[:0] for array in arrays), **options)
    assert (empty.total.item(), empty.weight.item(), empty.value.item()) == (0, 0, 0)

    cuts = (slice(0, rows // 2), slice(rows // 2, rows))
    parts = [loss(*(array[cut] for array in arrays), **options) for cut in cuts]
    merged = type(whole).merge(*parts)
    mapped = mx.vmap(lambda *members: loss(*(member[None] for member in members), **options))(*arrays)
    for total, weight in (merged, (mapped.total.sum(), mapped.weight.sum())):
        np.testing.assert_allclose(total.item(), whole.total.item(), 1e-5, 1e-6)
        np.testing.assert_allclose(weight.item(), whole.weight.item(), 1e-6)
