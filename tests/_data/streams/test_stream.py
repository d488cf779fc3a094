"""`Stream`: iterables and loaders, with a position that a checkpoint holds."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.data import Stream
from tests._loop.workload import STEP, assert_same, batch_of, start


def making(epoch):
    """Make the batches of an epoch, as a shuffling loader would: other ones in each."""
    return (batch_of(10 * epoch + number) for number in range(4))


class Loader:
    """A loader with a state of its own, as torchdata's."""

    def __init__(self):
        self.place, self.read = 0, []

    def __iter__(self):
        while self.place < 40:
            self.place += 1
            self.read.append(self.place)
            yield batch_of(self.place)

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Resettable:
    """An iterator with `reset`, as a stream of mlx.data; its leaves are numpy arrays."""

    def __init__(self):
        self.place = 0

    def reset(self):
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == 5:
            raise StopIteration
        self.place += 1
        return {name: np.array(value) for name, value in batch_of(self.place).items()}


@pytest.mark.parametrize("make", [lambda: making, Loader, Resettable, lambda: list(making(0))])
def test_a_resumed_run_equals_an_uninterrupted_one(make, tmp_path):
    whole = ps.fit(STEP, start(), Stream(make()), steps=14)
    assert whole.steps == 14
    for steps in (6, 14):
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            result = ps.fit(STEP, start(), Stream(make()), steps=steps, checkpointer=checkpointer)
    assert_same(result.state, whole.state)


def test_a_loader_with_a_state_is_not_read_again(tmp_path):
    loaders = []
    for steps in (6, 14):
        loaders.append(Loader())
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            ps.fit(STEP, start(), Stream(loaders[-1]), steps=steps, checkpointer=checkpointer)
    assert loaders[1].read[0] == 7


def test_numpy_leaves_become_arrays():
    (batch,) = Stream([{"a": np.ones(2), "b": [np.zeros(1, np.int64)], "c": mx.array(1)}])
    assert {str(leaf.dtype) for leaf in (batch["a"], batch["b"][0])} == {"mlx.core.float32", "mlx.core.int64"}
    assert isinstance(batch["c"], mx.array)


def test_what_can_be_read_once_is_refused():
    with pytest.raises(ValueError, match="Stream: source .* again: .*function"):
        Stream(iter([1]))
    with pytest.raises(TypeError, match="Stream: source .* iterable .*got 3"):
        Stream(3)
