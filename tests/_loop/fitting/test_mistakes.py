"""Mistakes in the arguments of `fit` are refused in words, before any step if possible."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.callbacks import Callback, Save, Stop
from tests._loop.workload import STEP, At, assert_same, bare, batch_of, loss_fn, start


def evaluation(**options):
    return ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], **options)


def returning(**metrics):
    """Return a step with metrics of its own."""
    return lambda state, batch: (STEP(state, batch)[0], metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpointer": "run"}, "checkpointer .*Checkpointer, got 'run'"),
        ({"callbacks": ps.callbacks.log()}, r"callbacks .*list.*\[callback\]"),
        ({"callbacks": lambda progress: None}, r"callbacks .*list.*\[callback\]"),
        ({"callbacks": None}, "callbacks .*list, got None"),
        ({"resume": "no"}, "resume .*True or False, got 'no'"),
        ({"same_data": 0}, "same_data .*True or False, got 0"),
        ({"stop_on_nonfinite": None}, "stop_on_nonfinite .*True or False, got None"),
        ({"metadata": {"purestep.fit": 1}}, "metadata .*'purestep.fit'"),
    ],
)
def test_arguments_of_other_types_are_refused_before_the_source_is_read(options, message):
    source = At()
    with pytest.raises((TypeError, ValueError), match=f"fit: {message}"):
        ps.fit(STEP, start(), source, steps=3, **options)
    assert source.asked == []


def test_a_directory_that_another_run_writes_is_refused_before_the_first_step(tmp_path):
    class Begun(Callback):
        def on_train_begin(self, run):
            raise AssertionError("the run has begun")

    with ps.checkpoint.Checkpointer(tmp_path) as first:
        first.save(start())
        with ps.checkpoint.Checkpointer(tmp_path) as second, pytest.raises(ps.checkpoint.LockedError):
            ps.fit(STEP, start(), At(), steps=3, checkpointer=second, callbacks=[Begun()])
    source = At()
    with pytest.raises(ValueError, match="fit: .*Checkpointer .*closed"):
        ps.fit(STEP, start(), source, steps=3, checkpointer=first)
    assert source.asked == []


def test_a_state_that_cannot_be_stored_is_refused_before_the_first_step(tmp_path):
    source = At()
    with (
        ps.checkpoint.Checkpointer(tmp_path) as checkpointer,
        pytest.raises(TypeError, match=r"fit: state.n .*Python number 0;.* mx.array\(0\)"),
    ):
        ps.fit(lambda state, batch: (state, {}), {"n": 0}, source, steps=3, checkpointer=checkpointer)
    assert source.asked == []


def test_a_step_that_changes_the_structure_of_the_state_could_not_be_resumed(tmp_path):
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state.replace(model_state={"seen": mx.ones(2)}), metrics

    said = "fit: step .*state.*model_state.seen .*new state, not in"
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer, pytest.raises(ValueError, match=said):
        ps.fit(step, start(), At(), steps=9, checkpointer=checkpointer)
    assert ps.fit(step, start(), At(), steps=9).steps == 9  # nothing is stored


def test_states_of_callbacks_are_checked_before_the_first_step(tmp_path):
    class Remembering(Callback):
        def state(self):
            return {"best": mx.ones(2)}

    with (
        ps.checkpoint.Checkpointer(tmp_path) as checkpointer,
        pytest.raises(TypeError, match=r"\['Remembering 1'\]\['best'\] .*plain.*got array") as caught,
    ):
        ps.fit(STEP, start(), At(), steps=3, checkpointer=checkpointer, callbacks=[Remembering()])
    assert vars(caught.value)["result"].steps == 0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": mx.ones(3)}, r"0-d arrays, got loss of shape \(3,\)"),
        ({"loss": {"a": mx.array(1.0)}}, "0-d arrays, got loss of type dict"),
        ({"loss": "low"}, "0-d arrays, got loss of type str"),
        ({"loss": ps.Mean(mx.array(1.0), mx.array(2.0))}, "got loss of type Mean; write mean.value"),
        ({"step": mx.array(1.0)}, "not return a metric named step"),
    ],
)
def test_metrics_that_are_no_figures_are_refused_at_the_first_step(metrics, message):
    with pytest.raises((TypeError, ValueError), match=f"fit: step .*{message}") as caught:
        ps.fit(returning(**metrics), start(), At(), steps=100, log_every=50)
    assert vars(caught.value)["result"].steps == 0


@pytest.mark.parametrize("metrics", [None, mx.array(1.0)])
def test_metrics_must_be_a_dict(metrics):
    with pytest.raises(TypeError, match="fit: step .*dict .*metrics"):
        ps.fit(lambda state, batch: (state, metrics), start(), At(), steps=100)


def test_figures_of_each_type_of_number_make_rows():
    numbers = {
        "a": mx.array(3), "b": mx.array(True), "c": mx.array(1.5, mx.bfloat16), "d": 2.0, "e": 7, "f": True,
        "g": mx.array([0.5]),
    }  # fmt: skip
    rows = list(ps.fit(returning(**numbers), start(), At(), steps=2).history)
    assert rows == [{"step": 2, "a": 3.0, "b": 1.0, "c": 1.5, "d": 2.0, "e": 7.0, "f": 1.0, "g": 0.5}]


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_figure_has_one_source(log_every):
    step = returning(loss=mx.array(1.0), eval_loss=mx.array(-5.0))
    with pytest.raises(ValueError, match="fit: 'eval_loss' .*step .*eval"):
        ps.fit(step, start(), At(), steps=9, evaluate=evaluation(every=2), log_every=log_every)
    first = ps.Evaluation(lambda state: {"a_norm": 1.0}, every=2)
    second = ps.Evaluation(lambda state: {"norm": 2.0}, every=2, name="eval_a")
    with pytest.raises(ValueError, match="fit: .*evaluations .*'eval_a_norm'"):
        ps.fit(STEP, start(), At(), steps=9, evaluate=[first, second])


class Policy:
    """An on-policy source."""

    on_policy = True

    def at(self, state):
        return batch_of(0)


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (ps.eval_step(loss_fn), {}, "measure .*without source=.*state, batch"),
        (loss_fn, {"source": [batch_of(0)]}, r"measure .*\(state, batch\), got.*params, batch, rng"),
        (ps.eval_step(loss_fn), {"source": Policy(), "batches": 2}, "got an on-policy source"),
    ],
)
def test_an_evaluation_that_could_not_be_called_is_refused_when_it_is_made(measure, options, message):
    with pytest.raises(ValueError, match=f"Evaluation: .*{message}"):
        ps.Evaluation(measure, **options)


def test_a_measure_without_a_signature_or_with_defaults_is_accepted():
    compiled = mx.compile(lambda state: state.params["w"].sum())
    assert ps.Evaluation(compiled).measured("fit", start()).figures == {"eval": 0.0}
    assert ps.Evaluation(lambda state, scale=2.0: scale).measured("fit", start()).figures == {"eval": 2.0}


@pytest.mark.parametrize(
    ("value", "message"), [(mx.ones(4), r"an array of shape \(4,\)"), (None, "None"), ({"a": 1}, "{'a': 1}")]
)
def test_an_evaluation_must_return_numbers_or_texts(value, message):
    with pytest.raises(TypeError, match=f"evaluation eval_w .*got {message}"):
        ps.Evaluation(lambda state: {"w": value}).measured("fit", start())
    truth = ps.Evaluation(lambda state: {"w": mx.array(True), "v": False}).measured("fit", start())
    assert truth.figures == {"eval_w": 1.0, "eval_v": 0.0}


def test_a_metric_of_the_checkpointer_that_nothing_gives_is_refused(tmp_path):
    for metric, stops in (("eval_los", 10), ("lss", 10), ("eval_loss", None), ("loss", None)):
        with ps.checkpoint.Checkpointer(tmp_path / metric, metric=metric) as checkpointer:
            options = {"steps": 20, "evaluate": evaluation(every=5), "checkpointer": checkpointer}
            if stops is None:
                assert ps.fit(STEP, start(), At(), **options).best.metric == metric
                continue
            with pytest.raises(ValueError, match=f"fit: checkpointer.metric.*got '{metric}'") as caught:
                ps.fit(STEP, start(), At(), **options)
            assert vars(caught.value)["result"].steps == stops


class Hooked(Callback):
    """Returns a value from one hook."""

    def __init__(self, hook, value):
        setattr(self, hook, lambda given: value)


@pytest.mark.parametrize(
    ("hook", "steps", "evaluated"),
    [("on_train_begin", 0, []), ("on_step_end", 1, [1]), ("on_eval_end", 2, [2]), ("on_checkpoint", 2, [2])],
)
def test_a_stop_of_each_hook_is_obeyed(hook, steps, evaluated, tmp_path):
    late = ps.Evaluation(lambda state: 1.0, every=50, name="late")  # it is made for the last state too
    with ps.checkpoint.Checkpointer(tmp_path) as checkpointer:
        result = ps.fit(
            STEP, start(), At(), steps=9, evaluate=[evaluation(every=2), late], checkpointer=checkpointer,
            callbacks=[Hooked(hook, Stop("enough"))],
        )  # fmt: skip
        stored = checkpointer.latest()
    assert (result.reason, result.steps) == ("enough", steps)
    assert result.history.column("eval_loss")[0] == result.history.column("late")[0] == evaluated
    assert (stored is None) == (steps == 0)
    if stored is not None:
        assert stored.metrics["late"] == 1.0
    assert_same(result.state, [start(), *(made[0] for made in bare(start(), map(batch_of, range(2))))][steps])


@pytest.mark.parametrize("hook", ["on_train_begin", "on_step_end", "on_eval_end", "on_checkpoint"])
@pytest.mark.parametrize("value", [True, "stop", Stop, Stop(""), Stop(3)])
def test_nonsense_of_each_hook_is_refused_with_its_name(hook, value, tmp_path):
    with (
        ps.checkpoint.Checkpointer(tmp_path) as checkpointer,
        pytest.raises(TypeError, match=rf"fit: Hooked.{hook} .*return"),
    ):
        ps.fit(
            STEP, start(), At(), steps=2, evaluate=evaluation(every=1), checkpointer=checkpointer,
            callbacks=[Hooked(hook, value)],
        )  # fmt: skip


def test_no_state_can_be_saved_before_the_first_step():
    with pytest.raises(TypeError, match="on_train_begin .*Stop or None"):
        ps.fit(STEP, start(), At(), steps=2, callbacks=[Hooked("on_train_begin", Save())])


def test_a_callback_that_changes_the_metrics_changes_no_row():
    seen = ps.fit(STEP, start(), At(), steps=4, callbacks=[lambda progress: progress.metrics.clear()])
    assert seen.history.to_plain() == ps.fit(STEP, start(), At(), steps=4).history.to_plain()
