"""Signals around `fit`: before it, in another thread, and with an error of MLX's compiler."""

import signal
import threading

import mlx.core as mx
import pytest

import purestep as ps
from tests._loop.workload import STEP, At, assert_same, batch_of, loss_fn, start

STEPS = 6


def fitted(path, step=STEP, **options):
    evaluation = ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], every=4)
    with ps.checkpoint.Checkpointer(path) as checkpointer:
        return ps.fit(
            step, start(), At(), steps=STEPS, evaluate=evaluation, checkpointer=checkpointer, **options
        )


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def lost_kernel(*arguments):
    """Fail as MLX does when Ctrl-C in a terminal also ends the compiler that it runs."""
    ctrl_c()
    raise RuntimeError("Could not load C++ shared library")


@pytest.fixture
def whole(tmp_path):
    return fitted(tmp_path / "whole")


def check_resumed(path, whole):
    resumed = fitted(path)
    assert (resumed.reason, resumed.steps) == ("steps", STEPS)
    assert_same(resumed.state, whole.state)
    assert resumed.history.to_plain() == whole.history.to_plain()


def test_a_signal_that_arrived_before_ends_the_run_before_its_first_step(tmp_path, whole):
    steps = []

    def counted(state, batch):
        steps.append(batch)
        return STEP(state, batch)

    with ps.checkpoint.signals():
        ctrl_c()
        result = fitted(tmp_path / "part", counted)
        again = fitted(tmp_path / "part", counted)  # the signal also ends every later run
    assert [(each.reason, each.steps) for each in (result, again)] == [("signal", 0)] * 2
    assert_same(result.state, start())
    assert not steps
    check_resumed(tmp_path / "part", whole)


def test_a_resumed_run_that_a_signal_ends_at_once_keeps_its_checkpoint(tmp_path, whole):
    fitted(tmp_path / "part", callbacks=[lambda progress: ctrl_c() if progress.step == 3 else None])
    with ps.checkpoint.signals() as asked:
        ctrl_c()
        result = fitted(tmp_path / "part")
        assert asked.received
    assert (result.reason, result.steps) == ("signal", 3)
    check_resumed(tmp_path / "part", whole)


def test_a_signal_within_fit_is_seen_outside(tmp_path):
    with ps.checkpoint.signals() as asked:
        fitted(tmp_path, callbacks=[lambda progress: ctrl_c() if progress.step == 3 else None])
        assert asked.received
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_a_compiler_that_ctrl_c_ends_in_an_evaluation_is_no_error(tmp_path, whole):
    evaluation = ps.Evaluation(lost_kernel, [batch_of(99)], every=4)
    with ps.checkpoint.Checkpointer(tmp_path / "part") as checkpointer:
        result = ps.fit(
            STEP, start(), At(), steps=STEPS, evaluate=evaluation, checkpointer=checkpointer
        )  # fmt: skip
    assert (result.reason, result.steps) == ("signal", 4)
    check_resumed(tmp_path / "part", whole)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, NotImplementedError])
def test_an_error_without_a_signal_or_of_another_kind_is_raised(tmp_path, error):
    def failing(state, batch):
        if error is not RuntimeError:
            ctrl_c()
        raise error("own")

    with pytest.raises(error, match="own") as caught:
        fitted(tmp_path, failing)
    assert caught.value.result.steps == 0


def test_a_run_in_another_thread_sees_the_signals_that_the_main_thread_watches(tmp_path):
    results = []

    def work():
        mx.set_default_device(mx.default_device())
        results.append(fitted(tmp_path, prefetch=0))

    mx.eval(start())
    with ps.checkpoint.signals():
        ctrl_c()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (results[0].reason, results[0].steps) == ("signal", 0)
