"""leafwise, and the norms of single arrays."""

import mlx.core as mx
import pytest

from purestep._transforms.core.leafwise import block_norm, block_rms, leafwise
from tests.refusals import parts


def test_each_update_meets_its_parameter_and_none_stays():
    transform = leafwise("both", lambda update, param: update * param)
    params = {"a": [mx.array(2.0), None], "b": mx.array([3.0])}
    updates = {"a": [mx.array(5.0), None], "b": mx.array([7.0])}
    assert transform.init(params) == ()
    got, state = transform.update(updates, (), params)
    assert (got["a"][0].item(), got["a"][1], got["b"].item(), state) == (10.0, None, 21.0, ())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "both: params ... update(updates, state, params)"),
        ({"a": {"w": mx.ones(3)}}, "both: a.w ... (2,) in updates, (3,) in params"),
        ({"a": {"v": mx.ones(2)}}, "both: a.w ... updates, not in params; a.v ... params, not in updates"),
    ],
)
def test_params_of_another_tree_are_refused_with_the_path(params, message):
    with pytest.raises(ValueError, match=parts(message)):
        leafwise("both", lambda update, param: update).update({"a": {"w": mx.ones(2)}}, (), params)


def test_norms_are_float32_and_zero_for_empty_arrays():
    for measure, want in ((block_norm, 4000.0), (block_rms, 1000.0)):
        got = measure(mx.full(16, 1000.0, mx.float16))
        assert (got.item(), got.dtype, got.shape) == (want, mx.float32, ())
        assert measure(mx.zeros((0, 3))).item() == 0
        assert measure(mx.array(-3.0)).item() == 3
