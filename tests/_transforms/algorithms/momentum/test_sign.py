"""scale_by_sign: three values, and NaN."""

import mlx.core as mx
import pytest

from purestep._transforms.algorithms.momentum.sign import sign
from purestep.optimizers import sign_sgd, signum
from purestep.transforms import scale_by_sign
from tests.running import run


def test_every_element_becomes_its_sign_whatever_its_size():
    values = [1e-30, -1e30, 0.0, -0.0, float("inf"), -float("inf")]
    assert sign(mx.array(values)).tolist() == [1, -1, 0, 0, 1, -1]


def test_nan_is_not_taken_for_zero():
    updates, _ = run(sign_sgd(0.5), [[float("nan"), -2.0]])
    assert mx.isnan(updates[0]).tolist() == [True, False]
    assert updates[0][1].item() == 0.5


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_dtype_of_the_gradient_stays(dtype):
    updates, state = run(scale_by_sign(), [[3.0, -1.0]], dtype)
    assert (updates[0].dtype, updates[0].tolist(), state) == (dtype, [1, -1], ())


def test_signum_follows_the_sign_of_the_running_mean():
    # The mean, times 10: 1, 0.9 - 0.5, 0.36 - 0.5
    updates, _ = run(signum(1.0, beta=0.9), [[1.0], [-0.5], [-0.5]])
    assert [update.item() for update in updates] == [-1, -1, 1]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="learning_rate .* 0, got -1"):
        sign_sgd(-1)
    with pytest.raises(ValueError, match="decay .* 1, got 1.5"):
        signum(0.1, beta=1.5)
