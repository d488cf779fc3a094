"""Signals and errors at any moment of a run: it ends soon, and the resumed run lacks nothing."""

import os
import signal
import threading
import time

import mlx.core as mx
import pytest

import purestep as ps
from purestep.callbacks import Callback
from tests._loop.workload import STEP, At, assert_same, batch_of, loss_fn, start


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def feeds():
    return [thread for thread in threading.enumerate() if thread.name == "purestep-batches"]


def fitted(path, *callbacks, source=None, step=STEP, steps=12, **options):
    figures = ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99), batch_of(98)], every=4)
    with ps.checkpoint.Checkpointer(path) as checkpointer:
        return ps.fit(
            step, start(), At() if source is None else source, steps=steps, checkpointer=checkpointer,
            callbacks=callbacks, **{"evaluate": figures, "log_every": 3, **options},
        )  # fmt: skip


@pytest.mark.parametrize("at", [7, 8, 12])
def test_the_evaluations_of_a_step_whose_callback_raises_are_made_by_the_resumed_run(at, tmp_path):
    def failing(progress):
        if progress.step == at:
            raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        fitted(tmp_path / "parts", failing)
    resumed, whole = fitted(tmp_path / "parts"), fitted(tmp_path / "whole")
    assert resumed.history.to_plain() == whole.history.to_plain()
    assert (resumed.best, resumed.reason) == (whole.best, whole.reason)


def test_a_signal_at_the_last_step_leaves_the_last_evaluation_to_the_next_run(tmp_path):
    first = fitted(tmp_path / "parts", lambda progress: terminated() if progress.step == 12 else None)
    assert (first.reason, first.steps) == ("signal", 12)
    resumed, whole = fitted(tmp_path / "parts"), fitted(tmp_path / "whole")
    assert (resumed.reason, resumed.best) == ("steps", whole.best)
    assert resumed.history.to_plain() == whole.history.to_plain()


def test_the_best_checkpoint_is_kept_if_a_signal_comes_at_its_evaluation(tmp_path):
    values = {4: 3.0, 8: 1.0, 12: 2.0, 16: 2.0, 20: 2.0}

    def run(*callbacks):
        measure = ps.Evaluation(lambda state: values[int(state.step.item())], every=4, name="value")
        keep = ps.checkpoint.keep_last(1)
        with ps.checkpoint.Checkpointer(tmp_path, keep=keep, metric="value") as checkpointer:
            result = ps.fit(
                STEP, start(), At(), steps=20, evaluate=measure, checkpointer=checkpointer,
                callbacks=[ps.callbacks.keep_best("value"), *callbacks],
            )  # fmt: skip
            return result, [record.step for record in checkpointer.list()]

    run(lambda progress: terminated() if progress.step == 8 else None)
    result, stored = run()
    assert result.best == ps.Best(8, "value", 1.0)
    assert stored == [8, 20]


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path):
    measured = []
    plain = ps.eval_step(loss_fn)

    def slow(state, batch):
        measured.append(int(state.step.item()))
        if len(measured) == 3:
            terminated()
        return plain(state, batch)

    def run(path, measure):
        evaluation = ps.Evaluation(measure, [batch_of(number) for number in range(9)], every=4)
        return fitted(path, evaluate=evaluation)

    first = run(tmp_path / "parts", slow)
    assert (first.reason, first.steps, measured) == ("signal", 4, [4, 4, 4])
    assert first.history.column("eval_loss") == ([], [])
    resumed, whole = run(tmp_path / "parts", plain), run(tmp_path / "whole", plain)
    assert resumed.history.to_plain() == whole.history.to_plain()


@pytest.mark.parametrize("at", [1, 5])
def test_a_step_that_fails_after_a_signal_ends_the_run_as_the_signal_does(at, tmp_path):
    """Ctrl-C in a terminal also reaches the compilers that MLX starts, and the step raises."""
    calls = []

    def killed(state, batch):
        calls.append(True)
        if len(calls) == at:
            terminated()
            raise RuntimeError("Could not load C++ shared library")
        return STEP(state, batch)

    first = fitted(tmp_path / "parts", step=killed)
    assert (first.reason, first.steps) == ("signal", at - 1)
    assert_same(fitted(tmp_path / "parts").state, fitted(tmp_path / "whole").state)


def test_no_step_is_sent_ahead_after_a_signal(tmp_path):
    sent = []

    def step(state, batch):
        sent.append(True)
        if len(sent) == 3:
            terminated()
        return STEP(state, batch)

    assert fitted(tmp_path, step=step).reason == "signal"
    assert len(sent) == 3


def test_a_signal_ends_a_run_that_waits_for_a_slow_source(tmp_path):
    released = threading.Event()

    def batches():
        yield from (batch_of(number) for number in range(3))
        while len(made) < 2:  # the loop has step 3 and waits for a batch
            time.sleep(0.01)
        terminated()
        released.wait(30)
        yield batch_of(3)

    made = []
    result = fitted(tmp_path, made.append, source=batches())
    assert (result.reason, result.steps) == ("signal", 3)
    assert not released.is_set()
    released.set()
    for thread in feeds():
        thread.join()


def test_a_signal_at_the_end_of_the_source_still_flushes_the_last_window():
    transform = ps.transforms.accumulate(ps.optimizers.sgd(0.1), every=4)
    step = ps.train_step(loss_fn, transform)

    def batches():
        yield from (batch_of(number) for number in range(6))
        terminated()

    begun = ps.TrainState.create({"w": mx.zeros(4)}, transform, seed=0)
    result = ps.fit(step, begun, batches(), prefetch=0)
    assert (result.reason, result.steps) == ("epochs", 6)
    assert_same(result.state, ps.fit(step, begun, At(), steps=6).state)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_second_signal_saves_nothing_but_hands_out_the_state_and_ends_the_callbacks(
    number, error, tmp_path
):
    class Twice(Callback):
        def on_step_end(self, progress):
            if progress.step == 3:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)

        def on_train_end(self, result):
            self.ended = result.steps

    callback = Twice()
    with pytest.raises(error) as caught:
        fitted(tmp_path, callback)
    assert vars(caught.value)["result"].steps == callback.ended == 3
    assert "no checkpoint was saved" in caught.value.__notes__[-1]
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.list() == []


def test_an_error_of_a_resumed_run_says_where_its_state_is(tmp_path):
    fitted(tmp_path, steps=4)

    class Refusing(Callback):
        def on_train_begin(self, run):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        fitted(tmp_path, Refusing())
    assert f"the state after step 4 is saved in {tmp_path}" in caught.value.__notes__[-1]


def test_each_checkpoint_is_told_also_the_last_one(tmp_path):
    told = []

    class Telling(Callback):
        def on_checkpoint(self, progress):
            told.append(progress.step)

    fitted(tmp_path, Telling(), steps=6, evaluate=None, save_every=4)
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        assert told == [record.step for record in checkpointer.list()] == [4, 6]


def test_threads_and_handlers_are_as_before_after_any_end(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def failing(progress):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fitted(tmp_path, failing)
    fitted(tmp_path)
    assert not feeds()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
