"""A resumed run equals an uninterrupted one bit for bit; work is never lost."""

import os
import re
import signal
import threading
import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep._checkpoint.run import store
from purestep.callbacks import Callback, Stop
from tests._loop.workload import STEP, At, assert_same, batch_of, loss_fn, start

STEPS = 20


class Passes:
    """An iterable that can be read again and again, three batches a pass."""

    def __init__(self, seed=0):
        self.seed = seed

    def __iter__(self):
        return (batch_of(self.seed + number) for number in range(3))


class Counting(Callback):
    """A callback with a memory."""

    def __init__(self):
        self.sum = 0.0

    def on_step_end(self, progress):
        self.sum += progress.step

    def state(self):
        return {"sum": self.sum}

    def restore(self, saved):
        self.sum = saved["sum"]


SOURCES = {
    "at": At,
    "list": lambda: [batch_of(number) for number in range(3)],
    "iterable": Passes,
    "generator": lambda: (batch_of(number) for number in range(STEPS)),
}


def fitted(path, source, *callbacks, steps=STEPS, **options):
    counting = Counting()
    evaluation = ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], every=4)
    with ps.checkpoint.Checkpointer(path) as checkpointer:
        result = ps.fit(
            STEP, start(), source, steps=steps, evaluate=evaluation, checkpointer=checkpointer,
            callbacks=[counting, *callbacks], log_every=3, **options,
        )  # fmt: skip
    return result, counting


def interrupting(at):
    """Return a callback that sends the process a signal."""
    return lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step == at else None


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("at", [1, 8, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, at, tmp_path):
    whole, counted = fitted(tmp_path / "whole", SOURCES[kind]())
    first, _ = fitted(tmp_path / "parts", SOURCES[kind](), interrupting(at))
    assert (first.reason, first.steps) == ("signal", at)
    second, recounted = fitted(tmp_path / "parts", SOURCES[kind]())
    assert second.reason == "steps"
    assert_same(second.state, whole.state)
    assert second.history.to_plain() == whole.history.to_plain()
    assert second.best == whole.best
    assert recounted.sum == counted.sum


def test_a_run_that_raises_is_saved_and_can_be_continued(tmp_path):
    whole, _ = fitted(tmp_path / "whole", At())

    def failing(progress):
        if progress.step == 7:
            raise RuntimeError("no space for a picture")

    with pytest.raises(RuntimeError, match="no space") as caught:
        fitted(tmp_path / "parts", At(), failing)
    assert "after step 7" in caught.value.__notes__[-1]
    assert str(tmp_path / "parts") in caught.value.__notes__[-1]
    assert vars(caught.value)["result"].steps == 7
    second, _ = fitted(tmp_path / "parts", At())
    assert_same(second.state, whole.state)
    assert second.history.to_plain() == whole.history.to_plain()


def test_without_a_checkpointer_the_state_is_in_the_error():
    def failing(progress):
        if progress.step == 2:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as caught:
        ps.fit(STEP, start(), At(), steps=9, callbacks=[failing])
    assert int(vars(caught.value)["result"].state.step.item()) == 2
    assert "error.result.state" in caught.value.__notes__[-1]


def test_batches_that_change_structure_lose_no_work(tmp_path):
    batches = [batch_of(0), batch_of(1), {"x": mx.zeros((8, 3)), "y": mx.zeros(8)}]
    with pytest.raises(ValueError, match="matmul|shape") as caught:
        fitted(tmp_path, batches)
    assert "the state after step 2 is saved" in caught.value.__notes__[-1]


@pytest.mark.parametrize("kind", ["at", "list", "iterable"])
def test_other_data_is_refused_unless_it_is_wanted(kind, tmp_path):
    other = {"at": At(seed=5), "list": [batch_of(7)] * 3, "iterable": Passes(seed=5)}[kind]
    fitted(tmp_path, SOURCES[kind](), steps=8)
    with pytest.raises(ValueError, match="^fit: source .*(step 0|epoch 2) .*same_data=False"):
        fitted(tmp_path, other)
    result, _ = fitted(tmp_path, other, same_data=False)
    assert result.steps == STEPS


def test_a_source_of_another_kind_is_refused_unless_it_is_wanted(tmp_path):
    class Policy:
        on_policy = True

        def at(self, state):
            return batch_of(0)

    kinds = {"an object with at(step)": At, "an iterable": SOURCES["list"], "an on-policy source": Policy}
    for first, before in kinds.items():
        for second, after in kinds.items():
            if first == second:
                continue
            path = tmp_path / f"{first} {second}"
            fitted(path, before(), steps=4)
            with pytest.raises(ValueError, match="^fit: source .*resumed") as caught:
                fitted(path, after(), steps=8)
            assert re.search(f"{re.escape(first)} .*got {re.escape(second)}", str(caught.value))
            assert fitted(path, after(), steps=8, same_data=False)[0].steps == 8


def test_texts_of_a_batch_are_compared(tmp_path):
    def run(prompt):
        batches = [{**batch_of(number), "prompt": [prompt]} for number in range(3)]
        step = lambda state, batch: STEP(state, {"x": batch["x"], "y": batch["y"]})  # noqa: E731
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            count = len(checkpointer.list())
            return ps.fit(step, start(), batches, steps=4 + count, checkpointer=checkpointer)

    assert run("why?").steps == 4
    assert run("why?").steps == 5
    with pytest.raises(ValueError, match="^fit: source .*batch of epoch 1 .*same_data=False"):
        run("how?")


def test_a_source_that_is_too_short_to_resume_is_refused(tmp_path):
    fitted(tmp_path, iter([batch_of(number) for number in range(8)]), steps=8)
    with pytest.raises(ValueError, match="^fit: source .* 8 batches .*epoch 0 .* 3$"):
        fitted(tmp_path, iter([batch_of(number) for number in range(3)]))


@pytest.mark.parametrize("live", [False, True])
def test_an_iterable_with_a_state_of_its_own_is_not_read_again(live, tmp_path):
    """Also one whose state is an object that changes as it is read, while batches are drawn ahead."""

    class Own(Passes):
        def __init__(self):
            super().__init__()
            self.now, self.read = {"place": [0]}, []

        def __iter__(self):
            place = self.now["place"]
            while place[0] < 50:
                self.read.append(place[0])
                place[0] += 1
                yield batch_of(place[0] - 1)
            place[0] = 0

        def get_state(self):
            return self.now if live else {"place": [*self.now["place"]]}

        def set_state(self, saved):
            self.now = {"place": [*saved["place"]]}

    whole, _ = fitted(tmp_path / "whole", Own(), prefetch=0)
    fitted(tmp_path / "parts", Own(), interrupting(5), prefetch=2)
    source = Own()
    second, _ = fitted(tmp_path / "parts", source)
    assert source.read[0] == 5
    assert_same(second.state, whole.state)


def test_steps_below_those_of_the_checkpoint_are_refused_and_equal_ones_are_done(tmp_path):
    first, _ = fitted(tmp_path, At(), steps=8)
    with pytest.raises(ValueError, match="^fit: steps .* 8.*got 5"):
        fitted(tmp_path, At(), steps=5)
    again, _ = fitted(tmp_path, At(), steps=8)
    assert (again.reason, again.steps) == ("steps", 8)
    assert_same(again.state, first.state)


def test_without_resume_a_used_directory_is_refused(tmp_path):
    fitted(tmp_path, At(), steps=8)
    with pytest.raises(ValueError, match="^fit: checkpointer .*empty directory.*step 8"):
        fitted(tmp_path, At(), resume=False)


def test_a_checkpoint_of_a_loop_by_hand_is_continued(tmp_path):
    states = [state for state, _ in ps.run(STEP, start(), At(), steps=STEPS)]
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(states[4])
    result, _ = fitted(tmp_path, At())
    assert_same(result.state, states[-1])


@pytest.mark.parametrize("made", [5, 6])
def test_a_checkpoint_of_a_loop_by_hand_over_a_list_is_continued(made, tmp_path):
    batches = [batch_of(number) for number in range(3)]
    states = [state for state, _ in ps.run(STEP, start(), batches, steps=8)]
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(states[made - 1])
    result, _ = fitted(tmp_path, batches, steps=8)
    assert_same(result.state, states[-1])


def test_metadata_is_stored_with_each_checkpoint(tmp_path):
    fitted(tmp_path, At(), steps=4, metadata={"config": {"width": 4}})
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest().metadata["config"] == {"width": 4}


def test_a_checkpoint_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    put, calls = store.put, []

    def full(*arguments):
        calls.append(arguments[1])
        if arguments[1] == 4:
            raise OSError(28, "No space left on device")
        return put(*arguments)

    monkeypatch.setattr(store, "put", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result, _ = fitted(tmp_path, At())
    assert [w.category for w in caught] == [ps.CheckpointWarning]
    assert "No space left" in str(caught[0].message)
    assert result.reason == "steps"
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        assert 20 in [record.step for record in checkpointer.list()]
        assert 4 not in [record.step for record in checkpointer.list()]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_second_signal_stops_at_once(number, error, tmp_path):
    def twice(progress):
        if progress.step == 3:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(error):
        fitted(tmp_path, At(), twice)


def test_a_stop_of_an_evaluation_that_a_signal_put_off_is_obeyed(tmp_path):
    class Stopping(Callback):
        def on_eval_end(self, progress):
            return Stop("good enough") if progress.step == 8 else None

    fitted(tmp_path, At(), interrupting(8))
    result, _ = fitted(tmp_path, At(), Stopping())
    assert (result.reason, result.steps) == ("good enough", 8)


def test_an_on_policy_run_is_resumed_to_the_bit(tmp_path):
    class Policy:
        on_policy = True

        def at(self, state):
            return batch_of(int(1000 * abs(state.params["w"][0].item())))

    whole, _ = fitted(tmp_path / "whole", Policy())
    fitted(tmp_path / "parts", Policy(), interrupting(7))
    second, _ = fitted(tmp_path / "parts", Policy())
    assert_same(second.state, whole.state)
    assert second.history.to_plain() == whole.history.to_plain()


def test_a_run_in_another_thread_works_without_signals(tmp_path):
    results = []
    whole, _ = fitted(tmp_path / "whole", At())

    def work():
        mx.set_default_device(mx.default_device())
        results.append(fitted(tmp_path / "thread", At(), prefetch=0)[0])
        mx.eval(results[0].state)

    mx.eval(start())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same(results[0].state, whole.state)


def test_the_first_state_of_a_resumed_run_is_not_kept_in_memory(tmp_path):
    """Between two steps there are the state after the last one and that which is being made."""
    size = 1 << 20
    held = []

    def step(state, batch):
        return {"w": state["w"] + 1, "step": state["step"] + 1}, {"loss": state["w"][0]}

    def run(steps):
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            template = {"w": mx.zeros(size), "step": mx.array(0)}
            mx.eval(template)
            before = mx.get_active_memory()
            noting = lambda progress: held.append((mx.get_active_memory() - before) / (4 * size))  # noqa: E731
            ps.fit(
                step, template, At(), steps=steps, checkpointer=checkpointer, callbacks=[noting], prefetch=0
            )

    run(2)
    held.clear()
    run(9)
    assert max(held[2:-1]) < 2.5
