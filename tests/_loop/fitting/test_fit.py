"""`fit`: the steps of a bare loop, with rows, evaluations, callbacks, and reasons to end."""

import math

import mlx.core as mx
import pytest

import purestep as ps
from purestep.callbacks import Callback, Save, Stop
from tests._loop.workload import STEP, TRANSFORM, At, assert_same, bare, batch_of, loss_fn, start

VALIDATION = [batch_of(1000 + number) for number in range(3)]


def evaluation(every=4, **options):
    return ps.Evaluation(ps.eval_step(loss_fn), VALIDATION, every=every, **options)


def test_fit_equals_a_bare_loop_and_rows_are_means_over_steps():
    result = ps.fit(STEP, start(), At(), steps=10, log_every=4)
    made = bare(start(), [batch_of(number) for number in range(10)])
    assert_same(result.state, made[-1][0])
    losses = [metrics["loss"].item() for _, metrics in made]
    rates = [metrics["learning_rate"].item() for _, metrics in made]
    steps, rows = result.history.column("loss")
    assert steps == [4, 8, 10]
    assert rows == [math.fsum(losses[:4]) / 4, math.fsum(losses[4:8]) / 4, math.fsum(losses[8:]) / 2]
    assert result.history.column("learning_rate")[1] == [rates[3], rates[7], rates[9]]
    assert (result.reason, result.steps, result.best) == ("steps", 10, None)


def test_evaluations_have_intervals_names_and_a_last_one():
    lengths = ps.Evaluation(lambda state: {"norm": ps.tree.norm(state.params)}, every=5, name="size")
    result = ps.fit(STEP, start(), At(), steps=10, evaluate=[evaluation(), lengths])
    assert result.history.column("eval_loss")[0] == [4, 8, 10]
    assert result.history.column("size_norm")[0] == [5, 10]
    made = bare(start(), [batch_of(number) for number in range(10)])
    wanted = [ps.evaluate(ps.eval_step(loss_fn), made[k - 1][0], VALIDATION)["loss"] for k in (4, 8, 10)]
    assert result.history.column("eval_loss")[1] == wanted
    assert result.best == ps.Best((4, 8, 10)[wanted.index(min(wanted))], "eval_loss", min(wanted))


class Noting(Callback):
    """Notes each call of a hook."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append(("begin", run.start))

    def on_step_end(self, progress):
        self.calls.append(("step", progress.step))

    def on_eval_end(self, progress):
        self.calls.append(("eval", progress.step))

    def on_checkpoint(self, progress):
        self.calls.append(("checkpoint", progress.step))

    def on_train_end(self, result):
        self.calls.append(("end", result.reason))


def test_hooks_are_called_in_order(tmp_path):
    noting = Noting()
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        ps.fit(
            STEP,
            start(),
            At(),
            steps=3,
            evaluate=evaluation(2),
            checkpointer=checkpointer,
            callbacks=[noting],
        )
    assert noting.calls == [
        ("begin", 0), ("step", 1), ("step", 2), ("eval", 2), ("checkpoint", 2),
        ("step", 3), ("eval", 3), ("checkpoint", 3), ("end", "steps"),
    ]  # fmt: skip


def test_a_function_is_a_callback_and_a_stop_is_obeyed():
    seen = []

    def stop(progress):
        seen.append(progress.step)
        return Stop("enough") if progress.step == 3 else None

    result = ps.fit(STEP, start(), At(), steps=100, callbacks=[stop], evaluate=evaluation(50))
    assert seen == [1, 2, 3]
    assert (result.reason, result.steps) == ("enough", 3)
    assert_same(result.state, bare(start(), [batch_of(number) for number in range(3)])[-1][0])
    assert result.history.column("eval_loss")[0] == [3]  # the last state is measured


def test_progress_tells_what_was_seen():
    seen = []
    tokens = [
        {**batch_of(number, rows), "tokens": mx.zeros((rows, 5), mx.int32)}
        for number, rows in ((0, 8), (1, 3))
    ]
    ps.fit(STEP, start(), tokens, epochs=2, callbacks=[lambda progress: seen.append(progress)], log_every=3)
    assert [progress.samples for progress in seen] == [8, 11, 19, 22]
    assert [progress.tokens for progress in seen] == [40, 55, 95, 110]
    assert [progress.epoch for progress in seen] == [0, 0, 1, 1]
    assert [progress.row is not None for progress in seen] == [False, False, True, True]
    assert [len(progress.values.get("loss", ())) for progress in seen] == [0, 0, 3, 1]
    assert seen[0].steps is None


@pytest.mark.parametrize(
    ("source", "options", "reason", "steps"),
    [
        ([batch_of(0), batch_of(1)], {}, "epochs", 2),
        ([batch_of(0), batch_of(1)], {"epochs": 2}, "epochs", 4),
        ([batch_of(0), batch_of(1)], {"steps": 3}, "steps", 3),
        (At(length=3), {"epochs": 2}, "epochs", 6),
        (iter([batch_of(0)]), {"steps": 3}, "the source ended after 1 steps", 1),
    ],
)
def test_the_reason_says_why_a_run_ended(source, options, reason, steps):
    result = ps.fit(STEP, start(), source, **options)
    assert (result.reason, result.steps) == (reason, steps)


def test_the_last_window_of_accumulation_is_flushed():
    transform = ps.transforms.accumulate(ps.optimizers.sgd(0.1), every=4)
    for step in (ps.train_step(loss_fn, transform), ps.compiled(ps.train_step(loss_fn, transform))):
        result = ps.fit(step, start(transform), At(), steps=6)
        made = bare(start(transform), [batch_of(number) for number in range(6)], step)[-1][0]
        updates, _ = ps.transforms.flush(transform, made.opt_state, made.params)
        assert_same(result.state.params, ps.apply_updates(made.params, updates))
        assert not mx.array_equal(result.state.params["w"], made.params["w"])


def test_texts_of_an_evaluation_reach_the_callbacks():
    texts = []

    class Reading(Callback):
        def on_eval_end(self, progress):
            texts.append((progress.step, dict(progress.texts)))

    samples = ps.Evaluation(lambda state: ["one", "two"], every=2, name="samples")
    result = ps.fit(STEP, start(), At(), steps=2, evaluate=samples, callbacks=[Reading()])
    assert texts == [(2, {"samples": ["one", "two"]})]
    assert result.best is None


def test_a_nan_stops_the_run_and_names_the_leaf(tmp_path):
    class Poisoned(At):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "x": batch["x"] * (mx.nan if step == 12 else 1.0)}

    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        result = ps.fit(STEP, start(), Poisoned(), steps=100, checkpointer=checkpointer, save_every=5)
        assert (
            result.reason == "grad_norm is not finite at step 13; the first parameter that is not finite is w"
        )
        assert [record.step for record in checkpointer.list()] == [5, 10]
    assert result.steps == 15  # the checkpoint that was due found it
    result = ps.fit(STEP, start(), Poisoned(), steps=100)
    assert result.steps == 20  # the next row


def test_a_nan_in_a_metric_of_some_steps_is_named_by_its_own_step_also_after_a_resume(tmp_path):
    """Measured at steps 3, 6, ..., 18, of which 12 and 15 are in a stored part of a row; 18 is not finite."""

    class Poisoned(At):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "x": batch["x"] * (mx.nan if step == 17 else 1.0)}

    norms = ps.metrics.grad_norms(every=3, name="a")
    step = ps.train_step(loss_fn, TRANSFORM, measure=[norms])
    said = "a/w is not finite at step 18; the first parameter that is not finite is w"
    assert ps.fit(step, start(), Poisoned(), steps=40).reason == said
    seen = []
    for stop in (lambda progress: Stop("enough") if progress.step == 16 else None, seen.append):
        with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
            result = ps.fit(step, start(), Poisoned(), steps=40, checkpointer=checkpointer, callbacks=[stop])
    assert (result.reason, result.steps) == (said, 20)
    assert seen[-1].value_steps["a/w"] == [12, 15, 18]
    assert seen[-1].value_steps["loss"] == [*range(11, 21)]


def test_without_the_stop_a_nan_is_not_saved_either(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        poisoned = start().replace(params={"w": mx.full(4, mx.nan)})
        with pytest.warns(ps.CheckpointWarning, match="step 5 is not saved: its parameters"):
            result = ps.fit(
                STEP,
                poisoned,
                At(),
                steps=5,
                checkpointer=checkpointer,
                save_every=5,
                stop_on_nonfinite=False,
            )
        assert result.reason == "steps"
        assert checkpointer.list() == []


@pytest.mark.parametrize("with_field", [True, False])
def test_parameters_that_are_not_finite_beside_a_finite_loss_are_not_saved_and_that_is_said(
    with_field, tmp_path
):
    """The loss does not use them, so the run goes on."""

    def step(state, batch):
        params = {"w": mx.full(4, mx.nan)}
        after = {"params": params} if isinstance(state, dict) else state.replace(params=params)
        return after, {"loss": mx.array(1.0)}

    begun = start() if with_field else {"params": {"w": mx.zeros(4)}}
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(ps.CheckpointWarning, match="step 5 is not saved: its parameters.*w for example"):
            result = ps.fit(step, begun, At(), steps=5, checkpointer=checkpointer, save_every=5)
        assert (result.reason, checkpointer.list()) == ("steps", [])


def test_an_infinite_metric_beside_finite_parameters_is_a_figure():
    step = lambda state, batch: (STEP(state, batch)[0], {"loss": mx.array(mx.inf)})  # noqa: E731
    result = ps.fit(step, start(), At(), steps=12)
    assert (result.reason, result.history.column("loss")) == ("steps", ([10, 12], [mx.inf, mx.inf]))


def test_a_window_that_cannot_be_flushed_is_said():
    transform = ps.transforms.accumulate(ps.optimizers.sgd(0.1), every=4)
    step = ps.train_step(loss_fn, transform)
    hidden = lambda state, batch: step(state, batch)  # noqa: E731
    with pytest.warns(UserWarning, match="the last, incomplete window of accumulate is not applied"):
        ps.fit(hidden, start(transform), At(), steps=6)
    assert ps.fit(hidden, start(transform), At(), steps=8).steps == 8  # no window is open


def test_batches_may_hold_texts():
    texts = [{**batch_of(number), "prompt": ["a", "b"], "id": number} for number in range(3)]
    step = lambda state, batch: STEP(state, {"x": batch["x"], "y": batch["y"]})  # noqa: E731
    assert ps.fit(step, start(), texts, epochs=2).steps == 6


def test_a_nan_that_a_transform_skips_does_not_stop_the_run():
    transform = ps.transforms.apply_if_finite(TRANSFORM, max_consecutive_errors=3)

    class Poisoned(At):
        def at(self, step):
            batch = super().at(step)
            return {**batch, "x": batch["x"] * (mx.nan if step == 12 else 1.0)}

    result = ps.fit(ps.train_step(loss_fn, transform), start(transform), Poisoned(), steps=30)
    assert result.reason == "steps"
    assert math.isnan(result.history.column("loss")[1][1])


def test_keep_requests_save_a_checkpoint(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        wanting = [lambda progress: Save("now") if progress.step == 3 else None]
        ps.fit(STEP, start(), At(), steps=5, checkpointer=checkpointer, callbacks=wanting)
        assert [record.step for record in checkpointer.list()] == [3, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "evaluate": [evaluation(), evaluation()]}, "evaluations .*names.*'eval' twice"),
        ({"steps": 3, "evaluate": [ps.eval_step(loss_fn)]}, r"evaluate\[0\] .* Evaluation"),
        ({"steps": 3, "evaluate": ps.eval_step(loss_fn)}, "evaluate .* Evaluation .*several"),
        ({"steps": 3, "callbacks": [3]}, r"callbacks\[0\] .* Callback .*got 3"),
        ({"steps": 3, "callbacks": [Noting]}, r"callbacks\[0\] .* Callback .*Noting"),
        (
            {"steps": 3, "callbacks": [lambda progress: True]},
            "FunctionCallback.on_step_end .*Stop, Save .*got True",
        ),
        ({"steps": 3, "log_every": 0}, "log_every.*0"),
        ({"steps": 3, "save_every": 5}, "save_every .*checkpointer"),
        ({"steps": 3, "metadata": {"a": mx.array(1)}}, r"metadata\['a'\] .* plain"),
        ({"steps": 3, "epochs": 1}, "steps and epochs .*steps=3 and epochs=1"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=f"fit: .*{message}"):
        ps.fit(STEP, start(), At(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": iter(VALIDATION)}, "source .*iterator"),
        ({"source": At()}, "batches .* given .*at\\(step\\)"),
        ({"source": mx.zeros(3)}, r"source .*one batch; .*\[batch\]"),
        ({"source": VALIDATION, "every": 0}, "every.*0"),
        ({"batches": 3}, "batches and perplexity .*source"),
        ({"source": VALIDATION, "name": ""}, "name .* word, got ''"),
        ({"source": VALIDATION, "name": "loss"}, "name .*metrics .*got 'loss'"),
    ],
)
def test_an_evaluation_that_could_measure_nothing_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=f"Evaluation: .*{message}"):
        ps.Evaluation(ps.eval_step(loss_fn), **options)


def test_an_evaluation_without_batches_is_an_error_and_the_state_is_kept(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        empty = ps.Evaluation(ps.eval_step(loss_fn), [], every=2)
        with pytest.raises(ValueError, match="^evaluate: source .* one batch, got none") as caught:
            ps.fit(STEP, start(), At(), steps=5, evaluate=empty, checkpointer=checkpointer)
        assert checkpointer.latest().step == 2
    assert vars(caught.value)["result"].steps == 2
