"""MLX's limits are set and restored."""

import mlx.core as mx
import pytest

import purestep as ps
from tests.refusals import parts


def now():
    limit, cache = mx.get_memory_limit(), mx.set_cache_limit(0)
    mx.set_cache_limit(cache)
    return limit, cache


def test_limits_are_those_of_before_after_the_block_and_after_an_error():
    before = now()
    with ps.memory.limits(memory=before[0] // 2, cache=12345, wired=0):
        assert now() == (before[0] // 2, 12345)
        with ps.memory.limits(cache=0):
            assert now() == (before[0] // 2, 0)
        assert now() == (before[0] // 2, 12345)
    assert now() == before
    with pytest.raises(KeyError), ps.memory.limits(memory=before[0] // 3):
        raise KeyError
    assert now() == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"memory": -1}, "memory.limits: memory ... at least 0, got -1"),
        ({"cache": 1.5}, "memory.limits: cache ... integer, got 1.5"),
        ({"wired": True}, "memory.limits: wired ... integer, got True"),
        ({"memory": 0}, "memory.limits: memory ... in use, got 0"),
    ],
)
def test_wrong_limits_are_refused_and_nothing_is_changed(options, error):
    before = now()
    held = mx.zeros(10)
    mx.eval(held)
    with pytest.raises((TypeError, ValueError), match=parts(error)), ps.memory.limits(**options):
        pass
    with pytest.raises((TypeError, ValueError)), ps.memory.limits(cache=1, **({"memory": 0} | options)):
        pass
    assert now() == before
