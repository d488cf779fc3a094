"""`run`: the steps of a bare loop, dispatched one ahead."""

import gc
import threading
import time

import mlx.core as mx
import pytest

import purestep as ps
from tests._loop.workload import STEP, At, assert_same, bare, batch_of, start


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("kind", ["at", "list", "generator", "iterable"])
def test_run_equals_a_bare_loop(kind, prefetch):
    class Passes:
        def __iter__(self):
            return (batch_of(number) for number in range(7))

    batches = [batch_of(number) for number in range(7)]
    source = {"at": At(), "list": batches, "generator": iter(Passes()), "iterable": Passes()}[kind]
    steps = 7 if kind == "at" else None
    made = list(ps.run(STEP, start(), source, steps=steps, prefetch=prefetch))
    wanted = bare(start(), batches)
    assert len(made) == 7
    for got, want in zip(made, wanted, strict=True):
        assert_same(got, want)


def test_the_next_step_is_dispatched_before_a_step_is_handed_out():
    made = []

    def step(state, batch):
        made.append(int(state.step.item()))
        return STEP(state, batch)

    loop = ps.run(step, start(), At(), steps=5)
    seen = []
    for _, _ in loop:
        seen.append(len(made))
    assert seen == [2, 3, 4, 5, 5]


def test_batches_are_prepared_ahead_but_not_without_bound():
    source = At()
    loop = ps.run(STEP, start(), source, steps=100, prefetch=3)
    next(loop)
    deadline = time.time() + 5
    while len(source.asked) < 6 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    # Two batches are used, three are in the queue, and the thread holds one.
    assert source.asked == list(range(len(source.asked)))
    assert 5 <= len(source.asked) <= 6


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "purestep-batches"]


def test_an_early_break_ends_the_thread_and_unfreezes_the_collector():
    before = gc.get_freeze_count()
    for _, _ in ps.run(STEP, start(), At()):
        assert gc.get_freeze_count() > before
        break
    assert not threads()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_the_source_comes_after_all_steps_before_it(prefetch):
    class Broken(At):
        def at(self, step):
            if step == 3:
                raise RuntimeError("record 3 is damaged")
            return super().at(step)

    loop, steps = ps.run(STEP, start(), Broken(), steps=10, prefetch=prefetch), []
    with pytest.raises(RuntimeError, match="record 3"):
        steps.extend(int(state.step.item()) for state, _ in loop)
    assert steps == [1, 2, 3]
    assert not threads()


def test_steps_count_those_before_and_at_starts_there():
    source = At()
    state = bare(start(), [batch_of(0), batch_of(1)])[-1][0]
    made = list(ps.run(STEP, state, source, steps=4, prefetch=0))
    assert source.asked == [2, 3]
    assert [int(after.step.item()) for after, _ in made] == [3, 4]
    assert list(ps.run(STEP, state, source, steps=2)) == []
    with pytest.raises(ValueError, match=r"run: steps .* 2.*got 1"):
        ps.run(STEP, state, source, steps=1)


def test_epochs_are_passes():
    source = At(length=3)
    assert len(list(ps.run(STEP, start(), source, epochs=2))) == 6
    assert len(list(ps.run(STEP, start(), [batch_of(0), batch_of(1)], epochs=3))) == 6
    assert len(list(ps.run(STEP, start(), [batch_of(0), batch_of(1)], steps=5))) == 5


def test_an_iterator_that_ends_early_is_said():
    with pytest.warns(ps.SourceEndedWarning, match="ended after 2 of 5"):
        made = list(ps.run(STEP, start(), iter([batch_of(0), batch_of(1)]), steps=5))
    assert len(made) == 2


def test_an_on_policy_source_receives_the_state_before_each_step():
    class Policy:
        on_policy = True

        def __init__(self):
            self.seen = []

        def at(self, state):
            self.seen.append(int(state.step.item()))
            return batch_of(int(state.step.item()))

    source = Policy()
    made = list(ps.run(STEP, start(), source, steps=4))
    assert source.seen == [0, 1, 2, 3]
    for got, want in zip(made, bare(start(), [batch_of(n) for n in range(4)]), strict=True):
        assert_same(got, want)


def test_a_source_of_lazy_arrays_that_this_thread_made_still_works():
    class Lazy:
        def __init__(self):
            self.shift = mx.zeros(4) + 1.0
            self.late = None

        def at(self, step):
            batch = batch_of(step)
            if step >= 2:
                self.late = self.late if self.late is not None else late
                return {**batch, "x": batch["x"] + self.late - self.shift}
            return {**batch, "x": batch["x"] + self.shift - self.shift}

    late = mx.zeros(4) + 1.0  # evaluated by no batch before the thread begins
    made = list(ps.run(STEP, start(), Lazy(), steps=5))
    assert len(made) == 5
    assert_same(made[0], bare(start(), [Lazy().at(0)])[0])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"x": mx.zeros(3)}, {}, r"source .* one batch; .*\[batch\]"),
        (mx.zeros((4, 3)), {}, r"source .* one batch; .*\[batch\]"),
        (3, {}, "source .* iterable .*at\\(step\\), got int"),
        (At(), {"epochs": 2}, "epochs .*length: .*steps"),
        (At(), {"steps": 2, "epochs": 2}, "steps and epochs .*steps=2 .*epochs=2"),
        (At(), {"steps": -1}, "steps.*-1"),
        (At(), {"epochs": 0}, "epochs.*0"),
        (At(), {"prefetch": -1}, "prefetch.*-1"),
        (iter([]), {"epochs": 2}, "epochs .* 1 .*iterator.* got 2"),
    ],
)
def test_wrong_arguments_are_refused_at_once(source, options, message):
    with pytest.raises((ValueError, TypeError), match=f"run: {message}"):
        ps.run(STEP, start(), source, **options)


def test_a_source_without_batches_is_refused():
    with pytest.raises(ValueError, match="run: source .* one batch, got none"):
        list(ps.run(STEP, start(), []))


def test_states_of_any_type_have_steps_from_zero():
    source = At()
    made = list(ps.run(lambda state, batch: (state + 1, {}), mx.array(0), source, steps=3, prefetch=0))
    assert [int(state.item()) for state, _ in made] == [1, 2, 3]
    assert source.asked == [0, 1, 2]
