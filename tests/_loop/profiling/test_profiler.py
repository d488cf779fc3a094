"""Profiles of runs: the parts add up, what is slow shows in its part, and the run is the same."""

import json
import threading
import time

import mlx.core as mx
import pytest

import purestep as ps
from tests._loop.workload import STEP, At, assert_same, batch_of, loss_fn, start

SLOW = 0.02  # seconds; a step of this model takes about 0.001


def slow(given=None):
    time.sleep(SLOW)


class SlowAt(At):
    def at(self, step):
        slow()
        return super().at(step)


def profiled(step=STEP, source=None, *, steps=4, **options):
    with ps.profile(steps=steps, warmup=2) as profile:
        ps.fit(step, start(), At() if source is None else source, steps=steps + 3, **options)
    assert len(profile.rows) == steps
    return profile


def test_the_parts_of_a_step_add_up_to_its_wall_clock_and_the_steps_to_that_of_the_run():
    moments, begun = [], time.perf_counter()
    with ps.profile(steps=20, warmup=1) as profile:
        for _ in ps.run(STEP, start(), At(), steps=30):
            moments.append(time.perf_counter())
    for row in [profile.first, *profile.rows]:
        assert sum(row.parts.values()) == pytest.approx(row.seconds, abs=1e-9)
        assert all(seconds >= 0.0 for seconds in row.parts.values())
    # The last row ends after the loop body of its step, which has the number 19, and before the next one.
    spans = [row.seconds for row in profile.rows]
    assert moments[19] - moments[0] <= sum(spans) <= moments[20] - begun - profile.first.seconds
    assert set(profile.rows[0].parts) == {"data", "build", "dispatch", "queue", "wait", "loop body", "other"}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_slow_source_shows_as_data(prefetch):
    profile = profiled(source=SlowAt(), prefetch=prefetch)
    # A thread makes the next batch while the loop makes a step.
    assert profile.summary["data"].median >= (0.25 * SLOW if prefetch else SLOW)


def test_a_slow_callback_shows_as_callbacks():
    profile = profiled(callbacks=[slow])
    assert profile.summary["callbacks"].median >= SLOW


class SlowHooks(ps.callbacks.Callback):
    def on_eval_end(self, progress):
        slow()

    def on_checkpoint(self, progress):
        slow()


def test_the_hooks_of_evaluations_and_checkpoints_are_callbacks(tmp_path):
    evaluate = ps.Evaluation(lambda state: {"one": 1.0}, every=1)
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        profile = profiled(callbacks=[SlowHooks()], evaluate=evaluate, checkpointer=checkpointer)
    assert profile.summary["callbacks"].median >= 2 * SLOW
    assert profile.summary["evaluation"].median < SLOW
    assert profile.summary["checkpoint"].median > 0.0


def test_a_slow_evaluation_shows_as_evaluation_in_its_steps_alone():
    evaluate = ps.Evaluation(lambda state: slow() or {"one": 1.0}, every=2)
    profile = profiled(evaluate=evaluate)
    found = [row.parts["evaluation"] for row in profile.rows if "evaluation" in row.parts]
    assert len(found) == 2
    assert min(found) >= SLOW


def test_a_slow_checkpoint_shows_as_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(ps.checkpoint.Checkpointer, "save", lambda self, *given, **named: slow())
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        profile = profiled(checkpointer=checkpointer, save_every=1)
    assert profile.summary["checkpoint"].median >= SLOW


def test_a_step_that_is_slow_in_python_shows_as_build():
    profile = profiled(lambda state, batch: slow() or STEP(state, batch))
    assert profile.summary["build"].median >= SLOW


def test_a_step_that_is_slow_on_the_device_shows_as_waiting_for_it():
    weights = mx.random.normal((300, 300), key=mx.random.key(0))
    mx.eval(weights)

    def step(state, batch):
        state, metrics = STEP(state, batch)
        made = weights
        for _ in range(12):
            made = mx.tanh(made @ weights)
        return state, {**metrics, "made": made.sum()}

    found = profiled(step).summary
    assert found["wait"].share + found["queue"].share > 0.5


def test_a_slow_loop_body_shows_as_loop_body_and_own_parts_are_taken_out_of_it():
    with ps.profile(steps=4, warmup=1) as profile:
        for _ in ps.run(STEP, start(), At(), steps=8):
            with profile.part("mine"):
                slow()
            time.sleep(SLOW / 4)
    found = profile.summary
    assert found["mine"].median >= SLOW
    assert found["loop body"].median >= SLOW / 4


def test_a_profiled_run_is_the_same_to_the_bit():
    options = {"steps": 12, "evaluate": ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], every=3)}
    step = ps.compiled(STEP)
    plain = ps.fit(step, start(), At(), **options)
    with ps.profile(steps=5) as profile:
        watched = ps.fit(step, start(), At(), **options)
    assert_same(plain.state, watched.state)
    assert list(plain.history) == list(watched.history)
    assert step.traces == 1
    assert [row.traces for row in profile.rows] == [0] * 5


def test_the_trace_of_a_compiled_step_is_in_the_first_step():
    with ps.profile(steps=2, warmup=1) as profile:
        ps.fit(ps.compiled(STEP), start(), [batch_of(0), batch_of(1), batch_of(2, rows=6)], steps=6)
    assert profile.first.traces == 1
    assert [row.traces for row in profile.rows] == [0, 1]
    assert "traced in 1 of" in str(profile)


def test_a_loop_of_ones_own_has_the_parts_that_it_names():
    state = start()
    with ps.profile(steps=3, warmup=2) as profile:
        for number in range(8):
            with profile.part("data"):
                slow()
                batch = batch_of(number)
            with profile.part("build"):
                state, metrics = STEP(state, batch)
            with profile.part("wait"):
                mx.eval(state, metrics)
            profile.step()
    assert [row.step for row in profile.rows] == [3, 4, 5]
    assert profile.summary["data"].median >= SLOW
    assert list(profile.summary) == ["data", "build", "wait", "other", "step"]


def test_an_error_keeps_the_steps_before_it():
    def fails(progress):
        if progress.step == 5:
            raise KeyError("no")

    with pytest.raises(KeyError), ps.profile(steps=10, warmup=1) as profile:
        ps.fit(STEP, start(), At(), steps=20, callbacks=[fails])
    assert [row.step for row in profile.rows] == [2, 3, 4, 5]
    assert "4 steps of 10 asked for" in str(profile)
    with ps.profile(steps=1, warmup=1):  # the failed one is over
        pass


def test_a_loop_that_is_left_early_keeps_its_steps():
    with ps.profile(steps=10, warmup=1) as profile:
        for state, _ in ps.run(STEP, start(), At(), steps=20):
            if state.step.item() == 4:
                break
    assert [row.step for row in profile.rows] == [2, 3, 4]


def test_only_the_first_run_of_the_block_is_measured():
    def inner(progress):
        ps.fit(STEP, start(), At(), steps=2)

    with ps.profile(steps=3, warmup=1) as profile:
        ps.fit(STEP, start(), At(), steps=3, callbacks=[inner])
        ps.fit(STEP, start(), At(), steps=9, callbacks=[slow])
    assert [row.step for row in profile.rows] == [2, 3]


def test_a_profile_within_a_profile_or_used_twice_is_refused():
    with ps.profile() as outer:
        inner = ps.profile()
        with (
            pytest.raises(ValueError, match="profile: a profile must not lie in the block of another"),
            inner,
        ):
            pass
        ps.fit(STEP, start(), At(), steps=5)
    assert outer.first is not None
    with pytest.raises(ValueError, match="used once"), outer:
        pass


def test_each_thread_has_a_profile_of_its_own():
    found = {}

    def work(name):
        with ps.profile(steps=3, warmup=1) as profile:
            for _ in ps.run(STEP, start(), [batch_of(0)], steps=6):
                with profile.part(name):
                    pass
        found[name] = profile

    with ps.profile(steps=3, warmup=1) as outer:
        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outer.first is None
    for name, other in (("a", "b"), ("b", "a")):
        assert len(found[name].rows) == 3
        assert name in found[name].summary
        assert other not in found[name].summary


def test_mistakes_are_refused():
    for options in ({"steps": 0}, {"warmup": 0}, {"steps": 1.5}, {"warmup": True}):
        with pytest.raises((ValueError, TypeError), match=f"profile: {next(iter(options))} must be"):
            ps.profile(**options)
    profile = ps.profile()
    with pytest.raises(ValueError, match=r"Profile\.step: .*got a call outside"):
        profile.step()
    with profile:
        with pytest.raises(ValueError, match=r"Profile\.part: name must be"):
            profile.part("step")
        failures = []

        def elsewhere():
            try:
                profile.part("a")
            except ValueError as error:
                failures.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "on another thread" in failures[0]
        for _ in ps.run(STEP, start(), At(), steps=2):
            with pytest.raises(ValueError, match="count their steps themselves"):
                profile.step()
    with pytest.raises(ValueError, match=r"Profile\.part: .*got a call outside"):
        profile.part("a")


def test_json_holds_what_the_profile_holds():
    profile = profiled()
    content = json.loads(profile.to_json())
    assert content["asked"] == {"steps": 4, "warmup": 2}
    assert content["first"]["parts"] == profile.first.parts
    assert [row["seconds"] for row in content["rows"]] == [row.seconds for row in profile.rows]
    assert content["summary"]["step"]["median"] == profile.summary["step"].median


def test_a_profile_costs_a_few_clock_readings_and_none_when_it_is_over():
    readings = []
    with ps.profile(steps=4, warmup=1) as profile:
        clock, now = profile._clock, time.perf_counter
        clock.now = lambda: readings.append(1) or now()
        ps.fit(STEP, start(), At(), steps=40)
    assert len(profile.rows) == 4
    assert len(readings) <= 5 * 20
