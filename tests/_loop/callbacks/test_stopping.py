"""Reasons to stop or to save: pure decisions, obeyed by `fit`, the same in a resumed run."""

import math
import os
import signal
from pathlib import Path

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.best import is_best
from purestep._loop.callbacks.diverging import diverges
from purestep._loop.callbacks.stopping import waited
from tests._loop.workload import STEP, TRANSFORM, At, assert_same, loss_fn, start

callbacks = ps.callbacks


def measuring(values, every=2):
    """Return an evaluation that gives these figures one after the other, by the step of the state."""
    return ps.Evaluation(
        lambda state: {"loss": values[int(state.step.item()) // every - 1]}, every=every, name="eval"
    )


@pytest.mark.parametrize(
    ("values", "options", "count"),
    [
        ([], {}, 0),
        ([1.0], {}, 0),
        ([1.0, 1.0, 1.0], {}, 2),
        ([1.0, 0.95, 0.8], {"min_delta": 0.1}, 0),
        ([1.0, 0.95, 0.92], {"min_delta": 0.1}, 2),
        ([1.0, 2.0, 3.0], {"mode": "max"}, 0),
        ([1.0, math.nan, 0.5], {}, 0),
        ([1.0, math.nan, math.nan], {}, 2),
        ([0.9, 0.8, 0.7], {"baseline": 0.5}, 3),
        ([0.9, 0.4, 0.7], {"baseline": 0.5}, 1),
    ],
)
def test_waited_counts_the_values_since_the_last_improvement(values, options, count):
    assert waited(values, **options) == count


def test_early_stopping_stops_after_its_patience_also_when_resumed(tmp_path):
    values = [5.0, 4.0, 4.5, 4.2, 4.1, 3.0, 2.0, 1.0, 1.0, 1.0]

    def fitted(path, *others):
        with ps.checkpoint.Checkpointer(path) as checkpointer:
            return ps.fit(
                STEP, start(), At(), steps=20, evaluate=measuring(values), checkpointer=checkpointer,
                callbacks=[callbacks.early_stopping(patience=3), *others],
            )  # fmt: skip

    whole = fitted(tmp_path / "whole")
    assert (whole.reason, whole.steps) == ("eval_loss has not improved in 3 evaluations", 10)
    assert whole.best == ps.Best(4, "eval_loss", 4.0)
    interrupt = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step == 7 else None  # noqa: E731
    assert fitted(tmp_path / "parts", interrupt).reason == "signal"
    again = fitted(tmp_path / "parts")
    assert (again.reason, again.steps) == (whole.reason, whole.steps)
    assert_same(again.state, whole.state)


def test_a_figure_may_come_from_an_evaluation_that_is_made_later():
    fast = ps.Evaluation(lambda state: {"loss": 1.0}, every=2, name="eval")
    # The longest name decides: `eval_long` has given nothing when `eval` is made first.
    slow = ps.Evaluation(lambda state: {"loss": 1.0}, every=6, name="eval_long")
    stopping = callbacks.early_stopping("eval_long_loss", patience=2)
    keeping = callbacks.keep_best("eval_long_loss", hold=True)
    result = ps.fit(STEP, start(), At(), steps=40, evaluate=[fast, slow], callbacks=[stopping, keeping])
    assert (result.reason, result.steps) == ("eval_long_loss has not improved in 2 evaluations", 18)
    assert int(keeping.best.step.item()) == 6


@pytest.mark.parametrize("make", [callbacks.early_stopping, callbacks.keep_best])
def test_a_figure_that_no_evaluation_gives_is_refused(make):
    with pytest.raises(
        ValueError, match=r"^(early_stopping|keep_best): metric .* figure.*\(eval_loss\), got 'accuracy'"
    ):
        ps.fit(STEP, start(), At(), steps=4, evaluate=measuring([1.0, 2.0]), callbacks=[make("accuracy")])
    with pytest.raises(ValueError, match="called with evaluate="):
        ps.fit(STEP, start(), At(), steps=4, callbacks=[make("eval_loss")])


def test_divergence_leaves_out_nan_and_refuses_an_unknown_metric():
    watching = callbacks.divergence(window=40)
    losses = [1.0] * 20 + [math.nan, math.inf] + [1.0] * 20 + [9.0] * 10
    progress = None
    for number in range(0, len(losses), 4):
        progress = at_row(number + 4, {"loss": losses[number : number + 4]})
        request = watching.on_step_end(progress)
        if request is not None:
            break
    # Three of 9 among seven of 1 average 3.4; the window of 37 ones and three of 9 averages 1.6.
    assert request is not None
    assert "average 3.4, more than 2 times" in request.reason
    with pytest.raises(ValueError, match=r"divergence: metric.*\(loss\), got 'eval_loss'"):
        callbacks.divergence("eval_loss").on_step_end(progress)


def at_row(step, values, **others):
    row = {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
    return callbacks.Progress(
        step, None, 0, None, None, {}, row, values, None, {}, callbacks.History(), 8 * step, 0, 0.0
    )._replace(**others)


def test_diverges_compares_the_last_ten_with_the_window():
    assert not diverges([1.0] * 99, 100, 2.0)
    assert not diverges([1.0] * 100, 100, 2.0)
    # Ten of L after ninety of 1 average L, the window (90 + 10 L) / 100: equal to L / 2 at L = 2.25.
    assert not diverges([1.0] * 90 + [2.249] * 10, 100, 2.0)
    assert diverges([1.0] * 90 + [2.251] * 10, 100, 2.0)
    assert not diverges([-1.0] * 90 + [-3.0] * 10, 100, 2.0)
    assert diverges([1.0] * 90 + [math.inf] * 10, 100, 2.0) is False  # infinity is not above 2 x infinity


def test_divergence_stops_a_run_at_the_same_step_when_it_is_resumed(tmp_path):
    class Growing(At):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "y": batch["y"] + (0.0 if step < 60 else 100.0 * (step - 60))}

    def fitted(path, *others):
        with ps.checkpoint.Checkpointer(path) as checkpointer:
            return ps.fit(
                STEP, start(), Growing(), steps=200, checkpointer=checkpointer,
                callbacks=[callbacks.divergence(window=40), *others], log_every=5,
            )  # fmt: skip

    whole = fitted(tmp_path / "whole")
    assert whole.reason.startswith("loss diverges: its last 10 values average")
    assert 60 < whole.steps < 90
    interrupt = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step == 58 else None  # noqa: E731
    fitted(tmp_path / "parts", interrupt)
    again = fitted(tmp_path / "parts")
    assert (again.reason, again.steps) == (whole.reason, whole.steps)


def poisoned(*at):
    class Poisoned(At):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "x": batch["x"] * (mx.nan if step in at else 1.0)}

    return Poisoned()


def test_nonfinite_keeps_the_step_that_went_wrong(tmp_path):
    callback = callbacks.nonfinite(tmp_path / "bundles")
    result = ps.fit(ps.compiled(STEP), start(), poisoned(22), steps=50, callbacks=[callback])
    assert result.steps == 30
    assert "grad_norm is not finite at step 23; the first parameter that is not finite is w" in result.reason
    assert str(callback.bundle) in result.reason
    bundle = ps.replay.load(callback.bundle)
    states = [state for state, _ in ps.run(ps.compiled(STEP), start(), At(), steps=22)]
    assert_same(bundle.state.params, states[-1].params)
    assert bool(mx.isnan(bundle.batch["x"]).any().item())


def test_nonfinite_leaves_a_skipped_step_alone(tmp_path):
    transform = ps.transforms.apply_if_finite(TRANSFORM, max_consecutive_errors=3)
    step = ps.train_step(loss_fn, transform)
    callback = callbacks.nonfinite(tmp_path / "bundles")
    result = ps.fit(step, start(transform), poisoned(12), steps=20, callbacks=[callback])
    assert (result.reason, callback.bundle) == ("steps", None)


def test_nonfinite_keeps_the_step_that_broke_the_parameters_not_one_that_was_skipped(tmp_path):
    transform = ps.transforms.apply_if_finite(TRANSFORM, max_consecutive_errors=1)
    callback = callbacks.nonfinite(tmp_path)
    step = ps.train_step(loss_fn, transform)
    result = ps.fit(step, start(transform), poisoned(12, 15, 16, 17), steps=30, callbacks=[callback])
    assert result.steps == 20
    assert callback.bundle.name == "step_00000016"  # 12 and 15 were skipped


@pytest.mark.filterwarnings("error")
def test_nonfinite_keeps_the_step_also_when_a_checkpoint_finds_it_first(tmp_path):
    callback = callbacks.nonfinite(tmp_path / "bundles")
    with (
        ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer,
        pytest.warns(ps.replay.ReplayWarning, match="bundles/step_00000012"),
    ):
        result = ps.fit(
            STEP, start(), poisoned(12), steps=30, checkpointer=checkpointer, save_every=5,
            callbacks=[callback],
        )  # fmt: skip
    assert result.steps == 15
    assert callback.bundle == tmp_path / "bundles" / "step_00000012"


def test_nonfinite_refuses_a_directory_of_checkpoints_before_the_first_step(tmp_path):
    source = At()
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        ps.fit(STEP, start(), At(), steps=2, checkpointer=checkpointer)
    # `fit` has locked a directory that will receive checkpoints.
    callback = callbacks.nonfinite(tmp_path / "new")
    with (
        ps.checkpoint.Checkpointer(tmp_path / "new") as checkpointer,
        pytest.raises(ps.checkpoint.LockedError),
    ):
        ps.fit(STEP, start(), source, steps=9, checkpointer=checkpointer, callbacks=[callback], prefetch=0)
    assert set(source.asked) <= {0}  # the first batch is read for its checksum
    source = At()
    with pytest.raises(ValueError, match="holds checkpoints"):
        ps.fit(STEP, start(), source, steps=4, callbacks=[callbacks.nonfinite(tmp_path)], prefetch=0)
    assert not source.asked


def test_a_bundle_that_cannot_be_written_still_stops_the_run(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    callback = callbacks.nonfinite(tmp_path)
    monkeypatch.setattr("purestep._replay.bundle.write", full)
    result = ps.fit(STEP, start(), poisoned(2), steps=30, callbacks=[callback])
    assert result.steps == 10
    assert result.reason.endswith("the step could not be kept: [Errno 28] No space left on device")


def test_is_best_ignores_nan():
    assert is_best([math.nan, 1.0], "min")
    assert not is_best([1.0, math.nan], "min")
    assert is_best([1.0], "max")


def test_keep_best_saves_each_best_evaluation(tmp_path):
    values = [3.0, 2.0, 2.5, 1.0, 1.5]
    with ps.checkpoint.Checkpointer(
        tmp_path, save_when=ps.checkpoint.save_every_steps(1000), metric="eval_loss"
    ) as checkpointer:
        keeping = callbacks.keep_best(hold=True)
        result = ps.fit(
            STEP, start(), At(), steps=10, evaluate=measuring(values), checkpointer=checkpointer,
            callbacks=[keeping],
        )  # fmt: skip
        assert [record.step for record in checkpointer.list()] == [2, 4, 8, 10]
        best, record = checkpointer.restore(result.best.step, like=start())
        assert record.metrics["eval_loss"] == 1.0
        assert_same(best, keeping.best)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.early_stopping(patience=0), "early_stopping: patience.*0"),
        (lambda: callbacks.early_stopping(min_delta=-1), "early_stopping: min_delta.*-1"),
        (lambda: callbacks.early_stopping(mode="least"), "early_stopping: mode.*least"),
        (lambda: callbacks.divergence(window=10), "divergence: window.*10"),
        (lambda: callbacks.divergence(factor=1), "divergence: factor.*1"),
        (lambda: callbacks.divergence(factor=10), "divergence: factor .* window / 10 = 10"),
        (lambda: callbacks.keep_best(mode="least"), "keep_best: mode.*least"),
        (lambda: callbacks.every(0, print), "every: n.*0"),
        (lambda: callbacks.every(2, 3), "every: callback .* Callback .*got 3"),
        (lambda: callbacks.sampler(str, every=0), "sampler: every.*0"),
        (lambda: callbacks.jsonl("a\0b"), "jsonl: path .*null"),
        (lambda: callbacks.plots(3), "plots: path .* string.*3"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_every_calls_at_multiples_of_the_interval():
    seen = []
    counting = callbacks.every(3, lambda progress: seen.append(progress.step))
    state = [state for state, _ in ps.run(STEP, start(), At(), steps=2)][-1]
    ps.fit(STEP, state, At(), steps=10, callbacks=[counting])
    assert seen == [3, 6, 9]


def test_no_callback_reads_the_device_between_rows(tmp_path):
    """A read between rows would make Python wait for the step that is in flight."""
    reads = []
    made = [
        callbacks.log(lambda line: None), callbacks.jsonl(tmp_path / "m.jsonl"), callbacks.throughput(),
        callbacks.early_stopping(), callbacks.divergence(), callbacks.nonfinite(), callbacks.keep_best(),
        callbacks.progress(console=quiet()),
    ]  # fmt: skip
    progresses = []
    ps.fit(STEP, start(), At(), steps=7, callbacks=[progresses.append], log_every=100)

    class Unreadable:
        def __getattr__(self, name):
            reads.append(name)
            raise AssertionError("read")

    for callback in made:
        callback.on_train_begin(callbacks.Run(STEP, start(), 0, 7, callbacks.History(), 100, ("eval",)))
        for progress in progresses[:6]:
            assert callback.on_step_end(progress._replace(metrics={"loss": Unreadable()})) is None
    assert not reads
    assert Path(tmp_path / "m.jsonl").read_text() == ""


def quiet():
    return Console(quiet=True)


def test_a_run_that_stopped_early_does_not_go_on_when_it_is_started_again(tmp_path):
    def fitted(patience):
        flat = ps.Evaluation(lambda state: 1.0, every=4, name="flat")
        with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
            return ps.fit(
                STEP, start(), At(), steps=99, evaluate=flat, checkpointer=checkpointer,
                callbacks=[callbacks.every(3, callbacks.early_stopping("flat", patience=patience))],
            )  # fmt: skip

    first, again, longer = fitted(2), fitted(2), fitted(5)
    assert (first.reason, first.steps) == ("flat has not improved in 2 evaluations", 12)
    assert (again.reason, again.steps) == (first.reason, 12)
    assert (longer.reason, longer.steps) == ("flat has not improved in 5 evaluations", 24)


def test_a_run_that_diverged_does_not_go_on_when_it_is_started_again(tmp_path):
    def growing(state, batch):
        after, metrics = STEP(state, batch)
        return after, {**metrics, "loss": mx.where(state.step < 30, 1.0, 100.0)}

    def fitted(name, callback):
        with ps.checkpoint.Checkpointer(tmp_path / name) as checkpointer:
            return ps.fit(growing, start(), At(), steps=99, checkpointer=checkpointer, callbacks=[callback])

    callback = callbacks.divergence(window=30)
    first, again = fitted("a", callback), fitted("a", callbacks.divergence(window=30))
    assert first.reason.startswith("loss diverges")
    assert (again.reason, again.steps) == (first.reason, first.steps)
    # A callback that is used for another run begins anew.
    other = fitted("b", callback)
    assert (other.reason, other.steps) == (first.reason, first.steps)
