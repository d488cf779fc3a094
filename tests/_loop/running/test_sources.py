"""Sources of each kind, and values that are none."""

import gc
import threading
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from tests._loop.workload import STEP, At, batch_of, start


class Pair(NamedTuple):
    """A batch that is a NamedTuple."""

    x: mx.array
    y: mx.array


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Pair(mx.zeros((4, 3)), mx.zeros(4)), r"one batch; .*\[batch\]"),
        (np.zeros((4, 3)), r"one batch; .*\[batch\]"),
        ("train.txt", "source .*iterable .*got .* 'train.txt'"),
        (At, "source .*class At: call"),
    ],
)
def test_a_value_that_is_no_source_is_refused_before_any_work(source, message):
    with pytest.raises(TypeError, match=f"run: .*{message}"):
        ps.run(STEP, start(), source)
    with pytest.raises(TypeError, match=f"Evaluation: .*{message}"):
        ps.Evaluation(ps.eval_step(lambda params, batch, rng: ps.Mean.of(batch)), source, batches=1)


def test_a_named_tuple_with_at_is_a_source():
    class Repeated(NamedTuple):
        number: int

        def at(self, step):
            return batch_of(self.number)

    assert len(list(ps.run(STEP, start(), Repeated(3), steps=2))) == 2


def count(state, batch):
    return state + 1, {}


def test_a_batch_may_be_none_and_does_not_end_a_pass():
    assert len(list(ps.run(count, mx.array(0), [None] * 3))) == 3
    assert len(list(ps.run(count, mx.array(0), [mx.zeros(1), None, mx.zeros(1)], epochs=2))) == 6
    assert len(list(ps.run(count, mx.array(0), iter([None] * 5), prefetch=2))) == 5


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_at_that_raises_stop_iteration_is_named(prefetch):
    class Ended:
        def __init__(self):
            self.batches = iter([batch_of(0), batch_of(1), batch_of(2)])

        def at(self, step):
            return next(self.batches)

    loop, made = ps.run(STEP, start(), Ended(), steps=9, prefetch=prefetch), []
    with pytest.raises(RuntimeError, match=r"run: source.at\(3\) raised StopIteration.*has no end"):
        made.extend(loop)
    assert len(made) == 3


def test_a_source_that_exits_in_its_thread_does_not_stop_the_loop_for_ever():
    def batches():
        yield batch_of(0)
        yield batch_of(1)
        raise SystemExit(3)

    ended = []

    def work():
        try:
            list(ps.run(STEP, start(), batches(), prefetch=2))
        except SystemExit as error:
            ended.append(error.code)

    mx.eval(start(), batch_of(0))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert ended == [3]


@pytest.fixture
def draws():
    """Allow a test to draw from the global stream."""
    yield
    mx.random.seed(1)


@pytest.mark.usefixtures("draws")
def test_a_source_that_draws_without_a_key_gives_the_same_batches_with_a_thread():
    def drawn(prefetch):
        """Return the numbers of two runs, and the next number of the global stream."""
        mx.random.seed(7)
        numbers = []

        def noting(state, batch):
            numbers.append(batch.item())
            return state, {}

        for _ in range(2):
            batches = (mx.random.uniform(shape=()) for _ in range(4))
            for _ in ps.run(noting, mx.array(0), batches, prefetch=prefetch):
                pass
        return [*numbers, mx.random.uniform(shape=()).item()]

    without = drawn(0)
    assert len(set(without)) == 9
    assert drawn(2) == without


@pytest.mark.usefixtures("draws")
def test_numbers_that_the_loop_draws_are_not_undone_by_the_thread():
    mx.random.seed(7)
    batches = (mx.random.uniform(shape=()) for _ in range(4))
    mine = [mx.random.uniform(shape=()).item() for _ in ps.run(count, mx.array(0), batches)]
    assert len({*mine, mx.random.uniform(shape=()).item()}) == 5


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (mx.array(3), 0),
        ({"step": mx.array(3)}, 3),
        ({"step": 3}, 3),
        ({"w": mx.array(3)}, 0),
        ({"step": mx.zeros(2)}, 0),
    ],
)
def test_the_step_of_a_state_is_a_field_or_a_key(state, first):
    source = At()
    list(ps.run(lambda state, batch: (state, {}), state, source, steps=first + 2, prefetch=0))
    assert source.asked == [first, first + 1]


def test_the_step_of_a_state_may_be_a_python_number():
    class State(NamedTuple):
        w: mx.array
        step: int

    source = At()
    step = lambda state, batch: (State(state.w + 1, state.step + 1), {})  # noqa: E731
    made = list(ps.run(step, State(mx.array(0), 5), source, steps=7, prefetch=0))
    assert (source.asked, [state.step for state, _ in made]) == ([5, 6], [6, 7])


@pytest.mark.parametrize("made", [None, mx.array(1.0), 3, (1, 2, 3)])
def test_a_step_that_returns_no_pair_is_named(made):
    with pytest.raises(TypeError, match=r"run: step .*\(state, metrics\), got"):
        list(ps.run(lambda state, batch: made, start(), [batch_of(0)]))


@pytest.mark.parametrize("metrics", [None, {}, {"loss": 0.5}, mx.ones(3), ps.Mean(mx.ones(()), mx.ones(()))])
def test_metrics_of_any_form_are_handed_out(metrics):
    made = list(ps.run(lambda state, batch: (state + 1, metrics), mx.array(0), [batch_of(0)] * 3))
    assert [int(state.item()) for state, _ in made] == [1, 2, 3]
    assert all(found is metrics for _, found in made)


def test_a_loop_within_a_loop_leaves_the_collector_quiet():
    for _ in ps.run(STEP, start(), At(), steps=2):
        list(ps.run(STEP, start(), At(), steps=1))
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
