"""`Stream`: iterables and loaders, with a position that a checkpoint holds."""

import json
import random
import sys
import types

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._data.streams.plain import from_plain, to_plain
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


class Shuffling:
    """A loader as torchdata's: epochs of four batches, an order of its own, and `reset`.

    Its state is live: `state_dict()` returns the dict that the loader itself changes. It holds a tuple, an
    array and large integers. As in torchdata, no batch follows a state that was taken after the last batch.
    """

    def __init__(self):
        self.generator = np.random.default_rng(0)
        self.live = {
            "place": 0,
            "order": None,
            "generator": self.generator.bit_generator.state,
            "pair": (1, 2),
        }
        self.restored = False

    def reset(self):
        self.live["place"] = 0
        self.live["order"] = None

    def __iter__(self):
        if not self.restored:
            self.reset()
        self.restored = False
        if self.live["order"] is None:
            self.live["order"] = self.generator.permutation(4)
            self.live["generator"].update(self.generator.bit_generator.state)
        while self.live["place"] < 4:
            number = int(self.live["order"][self.live["place"]])
            self.live["place"] += 1
            yield batch_of(number)

    def state_dict(self):
        return self.live

    def load_state_dict(self, state):
        assert isinstance(state["pair"], tuple)
        assert isinstance(state["order"], np.ndarray)
        self.live, self.restored = dict(state), True
        self.generator.bit_generator.state = state["generator"]


@pytest.mark.parametrize("make", [lambda: making, Loader, Resettable, Shuffling, lambda: list(making(0))])
def test_a_resumed_run_equals_an_uninterrupted_one(make, tmp_path):
    whole = ps.fit(STEP, start(), Stream(make()), steps=14)
    assert whole.steps == 14
    for steps in (6, 8, 14):  # within a pass, and at the end of one
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


def test_a_loader_with_a_state_and_a_reset_continues_at_its_state():
    """`reset()` after `load_state_dict()` would begin the pass again."""
    stream = Stream(Shuffling())
    batches = iter(stream)
    for _ in range(2):
        next(batches)
    state = stream.get_state()
    kept = json.loads(json.dumps(state))
    rest = [batch["x"].tolist() for batch in (*batches, *stream)]
    assert state == kept  # a copy, not the dict that the loader changes
    again = Stream(Shuffling())
    again.set_state(kept)
    assert again.get_state() == kept
    assert [batch["x"].tolist() for batch in (*again, *again)] == rest
    assert len(rest) == 6
    assert again.get_state()["epoch"] == 2


def test_a_loader_at_the_end_of_a_pass_continues_with_the_next():
    stream = Stream(Shuffling())
    batches = iter(stream)
    for _ in range(4):
        next(batches)
    state = stream.get_state()  # the end is not seen yet
    assert list(batches) == []
    following = [batch["x"].tolist() for batch in stream]
    again = Stream(Shuffling())
    again.set_state(state)
    assert list(again) == []
    assert [batch["x"].tolist() for batch in again] == following


def test_a_source_that_shuffles_differently_or_got_shorter_is_not_resumed():
    orders = [[0, 1, 2, 3], [3, 1, 0, 2]]
    stream = Stream(lambda epoch: (batch_of(number) for number in orders[0]))
    batches = iter(stream)
    for _ in range(2):
        next(batches)
    state = stream.get_state()
    other = Stream(lambda epoch: (batch_of(number) for number in orders[1]))
    other.set_state(state)
    with pytest.raises(ValueError, match=r"Stream: source .*batch of epoch 0 .*Stream\(.*same_data=False"):
        next(iter(other))
    accepted = Stream(lambda epoch: (batch_of(number) for number in orders[1]), same_data=False)
    accepted.set_state(state)
    assert [batch["x"].tolist() for batch in accepted] == [
        batch_of(number)["x"].tolist() for number in (0, 2)
    ]
    short = Stream(lambda epoch: (batch_of(number) for number in orders[0][:1]))
    short.set_state(state)
    with pytest.raises(ValueError, match="Stream: source .* 2 batches of epoch 0 .* 1$"):
        next(iter(short))
    with pytest.raises(ValueError, match=r"Stream.set_state: state .*same kind of source"):
        Stream(Loader()).set_state(state)


class Tensor:
    """A tensor as torch's, as far as its state needs it."""

    __module__ = "torch"

    def __init__(self, values, dtype="torch.uint8", shape=None):
        self.values, self.dtype, self.shape = values, dtype, shape or (len(values),)

    def reshape(self, *shape):
        return self

    def tolist(self):
        return self.values


def test_states_of_generators_are_stored_as_plain_values(monkeypatch):
    generator = np.random.default_rng(3)
    twister = np.random.MT19937(4)
    plain_random = random.Random(5)
    state = {
        "pcg": generator.bit_generator.state,
        "twister": twister.state,
        "python": plain_random.getstate(),
        "scalar": np.int64(7),
        "bytes": b"\0\1",
        1: [None, True, 1.5, "a"],
        "key": mx.random.key(3),
    }
    plain = json.loads(json.dumps(to_plain(state)))
    found = from_plain(plain)
    expected = generator.integers(0, 100, 5).tolist(), twister.random_raw(), plain_random.random()
    generator, twister, plain_random = np.random.default_rng(0), np.random.MT19937(0), random.Random(0)
    generator.bit_generator.state = found["pcg"]
    twister.state = found["twister"]
    plain_random.setstate(found["python"])
    assert (generator.integers(0, 100, 5).tolist(), twister.random_raw(), plain_random.random()) == expected
    assert (found["scalar"], found["bytes"], found[1]) == (7, b"\0\1", [None, True, 1.5, "a"])
    assert type(found["scalar"]) is np.int64
    assert mx.array_equal(found["key"], mx.random.key(3))
    torch = types.SimpleNamespace(uint8="torch.uint8", tensor=lambda flat, dtype: Tensor(flat, dtype))
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensor = from_plain(json.loads(json.dumps(to_plain({"generator": Tensor([1, 2, 3])}))))["generator"]
    assert (tensor.values, tensor.dtype) == ([1, 2, 3], "torch.uint8")


def test_numpy_leaves_become_arrays():
    (batch,) = Stream([{"a": np.ones(2), "b": [np.zeros(1, np.int64)], "c": mx.array(1)}])
    assert {str(leaf.dtype) for leaf in (batch["a"], batch["b"][0])} == {"mlx.core.float32", "mlx.core.int64"}
    assert isinstance(batch["c"], mx.array)
    (flipped,) = Stream([{"a": np.arange(3)[::-1], "b": np.asfortranarray(np.arange(6).reshape(2, 3)).T}])
    assert flipped["a"].tolist() == [2, 1, 0]
    assert flipped["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    for wrong in (np.array(["a"]), np.array([None]), np.arange(3, dtype=">i4"), np.array(["2020"], "M8[D]")):
        with pytest.raises(TypeError, match=r"^Stream: a.b .*numbers .*MLX"):
            list(Stream([{"a": {"b": wrong}}]))
    with pytest.raises(TypeError, match=r"^Stream: a .*masked"):
        list(Stream([{"a": np.ma.array([1, 2], mask=[0, 1])}]))


def test_what_can_be_read_once_is_refused():
    with pytest.raises(ValueError, match="Stream: source .* again: .*function"):
        Stream(iter([1]))
    with pytest.raises(TypeError, match="Stream: source .* iterable .*got 3"):
        Stream(3)
    for wrong in ({"x": mx.array(1)}, mx.arange(3), "abc"):
        with pytest.raises(TypeError, match=r"Stream: source .*iterable .*\[batch\]"):
            Stream(wrong)
    with pytest.raises(TypeError, match=r"Stream: source\(0\) .*iterable .*got NoneType"):
        list(Stream(lambda epoch: None))
