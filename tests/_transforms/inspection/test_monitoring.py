"""snapshot and monitor measure updates and leave them unchanged."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import transforms, tree
from purestep.transforms import ema, monitor, snapshot

PARAMS = {"w": mx.ones(2), "none": None}


def test_updates_are_unchanged_and_measured_at_their_place_in_the_chain():
    transform = ps.chain(snapshot("before", tree.norm), transforms.scale(0.5), snapshot("after", tree.norm))
    state = transform.init(PARAMS)
    assert state[0].measurement["before"].item() == 0
    gradients = {"w": mx.array([6.0, 8.0]), "none": None}
    _, state = transform.update(gradients, state)
    assert (state[0].measurement["before"].item(), state[2].measurement["after"].item()) == (10, 5)
    alone = snapshot("x", tree.norm)
    assert alone.update(gradients, alone.init(PARAMS))[0] is gradients


def test_a_measure_may_be_a_transform_with_a_memory():
    def init(params):
        return mx.array(0, mx.int32)

    def count_large(updates, state, params=None, *, value=0.0):
        state = state + (tree.norm(updates) > 3).astype(mx.int32)
        return {"large": state, "value": mx.array(value)}, state

    transform = monitor({"mean": ema(0.5), "count": ps.GradientTransform(init, count_large)})
    state = transform.init(PARAMS)
    start = state
    for size in (4.0, 1.0, 5.0):
        _, state = transform.update({"w": mx.array([size, 0.0]), "none": None}, state, value=size)
        assert tree.alike(state, start)
    assert state.measurements["count"]["large"].item() == 2
    assert state.measurements["count"]["value"].item() == 5.0
    assert state.measure_states["mean"].count.item() == 3


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="snapshot: measure .* callable, got 3"):
        snapshot("a", 3)
    with pytest.raises(TypeError, match="snapshot: a measure's name .* string, got 3"):
        snapshot(3, tree.norm)
    with pytest.raises(TypeError, match=r"monitor: measures\['a'\] .* callable, got 3"):
        monitor({"a": 3})
    with pytest.raises(TypeError, match="monitor: a measure's name .* string, got 3"):
        monitor({3: tree.norm})


def test_a_measure_that_writes_into_the_updates_leaves_them_unchanged():
    def largest(updates):
        updates["w"] *= 2.0
        return updates["w"].max()

    for transform in (snapshot("largest", largest), monitor({"largest": largest})):
        updates, _ = transform.update(PARAMS, transform.init(PARAMS))
        assert updates["w"].tolist() == [1.0, 1.0]
