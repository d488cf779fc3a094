"""stacked: several batches of a source at a time."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.data import Batches, stacked
from tests.trees import same_bits


def test_a_stack_holds_the_batches_in_order():
    source = Batches({"x": mx.arange(20), "y": mx.zeros((20, 2))}, 2, seed=1)
    stacks = stacked(source, 4)
    assert len(stacks) == 2
    for step in (0, 1, 3):
        want = [source.at(4 * step + index) for index in range(4)]
        assert same_bits(stacks.at(step), ps.tree.map(lambda *rows: mx.stack(rows), *want))


def test_what_it_refuses():
    source = Batches({"x": mx.arange(6)}, 2)
    with pytest.raises(ValueError, match="stacked: k must be at least 1, got 0"):
        stacked(source, 0)
    with pytest.raises(ValueError, match="stacked: k must be at most 3, the batches of an epoch, got 4"):
        stacked(source, 4)
    with pytest.raises(TypeError, match=r"stacked: source must have at\(step\), got list"):
        stacked([{"x": mx.zeros(2)}], 1)
    with pytest.raises(ValueError, match=r"stacked\.at: step must be at least 0, got -1"):
        stacked(source, 2).at(-1)

    class Growing:
        def at(self, step):
            return {"x": mx.zeros(step + 1)}

    with pytest.raises(ValueError, match=r"equal shapes: x has shape \(4,\) in batch 3, \(3,\) in batch 2"):
        stacked(Growing(), 2).at(1)

    class Numbers:
        def at(self, step):
            return {"x": [mx.zeros(2), 1.0]}

    with pytest.raises(TypeError, match=r"stacked: batch 2\.x\.1 must be an mx\.array, got float"):
        stacked(Numbers(), 2).at(1)


def test_stacks_of_stacks_of_a_source_without_an_end():
    class Counting:
        def at(self, step):
            return {"x": mx.full((1,), step)}

    stacks = stacked(stacked(Counting(), 2), 3)
    assert stacks.at(1)["x"].tolist() == [[[6], [7]], [[8], [9]], [[10], [11]]]
    with pytest.raises(TypeError, match="no len"):
        len(stacks)
