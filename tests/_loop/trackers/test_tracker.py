"""The base of all trackers: order, threads, ids, and failures that must not touch training."""

import os
import signal
import sys
import threading
import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep._loop.trackers.images import picture_of
from purestep._loop.trackers.worker import Worker
from tests._loop.trackers.runs import CONFIG, fitted, killed, roll_back, rows_of
from tests._loop.workload import STEP, At, assert_same, start

MetricsWarning = ps.callbacks.MetricsWarning

CYCLE: dict = {}
CYCLE["a"] = CYCLE


class Listed(ps.callbacks.Tracker):
    """A tracker that keeps what it gets in a list that outlives it."""

    def __init__(self, calls, broken=(), **options):
        super().__init__(**options)
        self.calls, self.broken = calls, broken

    def note(self, call, *what):
        assert threading.current_thread() is not threading.main_thread()
        self.calls.append((call, *what))
        if call in self.broken:
            raise ConnectionError("network is unreachable")

    def open(self, opening):
        self.note("open", opening)
        written = [call[1:3] for call in self.calls if call[0] == "write"]
        return {
            kind: max([step for each, step in written if each == kind], default=-1)
            for kind in ("rows", "evaluations")
        } if opening.resumed else {}  # fmt: skip

    def write(self, kind, step, figures):
        self.note("write", kind, step, figures)

    def write_texts(self, step, name, texts):
        self.note("texts", step, name, texts)

    def write_picture(self, step, name, picture):
        self.note("picture", step, name, picture)

    def write_checkpoint(self, step, path):
        self.note("checkpoint", step, path)

    def flush(self):
        self.note("flush", None, None)

    def close(self, status):
        self.note("close", status, None)


def of(calls, name):
    return [call[1:] for call in calls if call[0] == name]


def test_a_tracker_gets_everything_once_and_in_order(tmp_path):
    calls = []
    with ps.checkpoint.Checkpointer(tmp_path / "run", metric="eval_loss") as checkpointer:
        tracker = Listed(calls, config=CONFIG, checkpoints=checkpointer)

        def draw(progress):
            if progress.step == 3:
                tracker.picture("plot", mx.zeros((2, 3)))

        losses = ps.Evaluation(lambda state: {"loss": 1.0}, every=4)
        texts = ps.Evaluation(lambda state: ["a", "b"], every=4, name="sample")
        result = ps.fit(
            STEP, start(), At(), steps=8, evaluate=[losses, texts], checkpointer=checkpointer,
            callbacks=[tracker, draw], log_every=2,
        )  # fmt: skip
    (opening,) = of(calls, "open")[0]
    assert opening.config == {"seed": 0, "bias": None, "decay": True, "model.width": 4, "model.name": "line"}
    assert (opening.start, opening.resumed) == (0, False)
    rows = [(step, row["loss"]) for kind, step, row in of(calls, "write") if kind == "rows"]
    assert rows == rows_of(result.history, "loss")
    assert [
        (step, row["eval_loss"]) for kind, step, row in of(calls, "write") if kind == "evaluations"
    ] == rows_of(result.history, "eval_loss")
    assert of(calls, "texts") == [(4, "sample", ["a", "b"]), (8, "sample", ["a", "b"])]
    assert [(step, name, picture.width) for step, name, picture in of(calls, "picture")] == [(3, "plot", 3)]
    assert [(step, path.is_dir()) for step, path in of(calls, "checkpoint")] == [(4, True), (8, True)]
    assert [call[0] for call in calls[-2:]] == ["flush", "close"]
    assert calls[-1][1] == "finished"
    assert all(type(value) in (int, float) for _, _, row in of(calls, "write") for value in row.values())


def test_a_resumed_run_has_the_id_of_the_first_and_no_row_twice(tmp_path):
    calls = []
    killed(Listed(calls), tmp_path, 11)
    assert calls[-1][1] == "failed"
    roll_back(tmp_path, 4)
    result = fitted(Listed(calls), tmp_path, 12)
    (first,), (second,) = of(calls, "open")
    assert (second.run_id, second.resumed, second.start) == (first.run_id, True, 4)
    for kind, name in (("rows", "loss"), ("evaluations", "eval_loss")):
        found = [(step, row[name]) for each, step, row in of(calls, "write") if each == kind]
        assert found == rows_of(result.history, name)
    fitted(Listed(calls), tmp_path / "other", 2)
    assert of(calls, "open")[2][0].run_id != first.run_id


def test_rows_that_were_lost_before_the_checkpoint_come_from_its_history(tmp_path):
    """The process died while rows that the checkpoint knows were waiting."""
    calls = []
    fitted(Listed(calls), tmp_path, 8)
    lost = [call for call in calls if call[0] == "write" and call[2] > 4]
    for call in lost:
        calls.remove(call)
    result = fitted(Listed(calls), tmp_path, 12)
    for kind, name in (("rows", "loss"), ("evaluations", "eval_loss")):
        found = [(step, row[name]) for each, step, row in of(calls, "write") if each == kind]
        assert found == rows_of(result.history, name)


@pytest.mark.parametrize(
    "saved", [{}, {"run": "../../etc"}, {"run": "a' OR '1'='1"}, {"run": 3}, {"run": None}, {"run": "A" * 32}]
)
def test_an_id_that_no_tracker_made_begins_another_run(saved):
    """The id becomes part of paths and queries, and a checkpoint may come from elsewhere."""
    calls = []
    tracker = Listed(calls)
    tracker.restore(saved)
    ps.fit(STEP, start(), At(), steps=1, callbacks=[tracker])
    (opening,) = of(calls, "open")[0]
    assert not opening.resumed
    assert set(opening.run_id) <= set("0123456789abcdef")


@pytest.mark.parametrize("broken", ["open", "write", "texts", "flush", "close"])
def test_a_tracker_that_fails_warns_once_and_training_is_the_same(broken, tmp_path):
    plain = fitted(ps.callbacks.log(lambda line: None), tmp_path / "plain", 8)
    calls = []
    with pytest.warns(MetricsWarning, match="training goes on: ConnectionError: network is") as caught:
        result = fitted(Listed(calls, [broken]), tmp_path / "tracked", 8)
    assert len(caught) == 1
    assert_same(plain.state, result.state)
    assert (result.reason, list(result.history)) == ("steps", list(plain.history))
    if broken == "open":
        assert len(calls) == 1
    else:
        assert calls[-1][0] == "close"


def test_a_library_that_exits_does_not_end_the_run():
    class Exits(ps.callbacks.Tracker):
        def write(self, kind, step, figures):
            sys.exit(1)

    with pytest.warns(MetricsWarning, match="SystemExit"):
        assert ps.fit(STEP, start(), At(), steps=4, callbacks=[Exits()], log_every=1).reason == "steps"


def test_the_loop_waits_for_nothing_but_the_end():
    """A network that hangs: all steps are made while the first call has not returned."""
    made, hanging = threading.Event(), threading.Event()

    class Hangs(ps.callbacks.Tracker):
        def open(self, opening):
            assert made.wait(60)

        def close(self, status):
            hanging.wait(60)

    def last(progress):
        if progress.step == 200:
            made.set()

    with pytest.warns(MetricsWarning, match="not all is written after 0.05 seconds"):
        ps.fit(STEP, start(), At(), steps=200, callbacks=[Hangs(wait=0.05), last], log_every=1)
    hanging.set()


def test_a_run_that_hangs_writes_nothing_into_the_next_run_of_the_same_tracker():
    """Its rows wait behind the call that hangs, and stay in their own run."""
    hanging, calls = threading.Event(), []

    class Numbered(ps.callbacks.Tracker):
        run = 0

        def open(self, opening):
            self.run += 1

        def write(self, kind, step, figures):
            calls.append((self.run, step))
            assert hanging.wait(60)

    def release(progress):
        hanging.set()

    tracker = Numbered(wait=0.01)
    with pytest.warns(MetricsWarning, match="not all is written"):
        ps.fit(STEP, start(), At(), steps=3, callbacks=[tracker], log_every=1)
    tracker._wait = 60
    ps.fit(STEP, start(), At(), steps=2, callbacks=[tracker, release], log_every=1)
    assert calls == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


def test_names_and_texts_are_what_every_library_can_encode():
    calls = []

    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, "a\nb\x1b\ud800": metrics["loss"]}

    said = ps.Evaluation(lambda state: ["c\ud800\n"], every=1, name="say")
    config = {"d\n": "e\ud800\n"}
    ps.fit(step, start(), At(), steps=1, evaluate=said, callbacks=[Listed(calls, config=config)], log_every=1)
    ((opening,),) = of(calls, "open")
    assert opening.config == {"d\\n": "e\\ud800\n"}
    assert r"a\nb\x1b\ud800" in of(calls, "write")[0][2]
    assert of(calls, "texts") == [(1, "say", ["c\\ud800\n"])]


def test_figures_whose_texts_fail_are_not_repeated_in_a_resumed_run(tmp_path):
    noted = []

    class Noting(Listed):
        def recorded(self, steps):
            noted.append(dict(steps))

    with pytest.warns(MetricsWarning):
        fitted(Noting([], ["texts"]), tmp_path, 8)
    assert noted[-1] == {"rows": 8, "evaluations": 8}


def test_too_many_waiting_jobs_are_dropped_and_counted():
    started, go, done = threading.Event(), threading.Event(), []
    worker = Worker("test", most=2)
    worker.post(lambda: (started.set(), go.wait(60)))
    assert started.wait(60)
    for number in range(5):
        worker.post(lambda number=number: done.append(number))
    assert worker.dropped == 3
    assert not worker.finish(lambda: None, 0.01)
    go.set()
    assert worker.finish(lambda: done.append("last"), 60)
    assert done == [0, 1, "last"]


def test_a_signal_ends_the_run_as_interrupted(tmp_path):
    calls = []

    def interrupt(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    result = ps.fit(STEP, start(), At(), steps=50, callbacks=[Listed(calls), interrupt], log_every=2)
    assert result.reason == "signal"
    assert [call[0] for call in calls[-2:]] == ["flush", "close"]
    assert calls[-1][1] == "interrupted"


def test_the_thread_ends_with_the_run():
    before = threading.active_count()
    for _ in range(3):
        ps.fit(STEP, start(), At(), steps=2, callbacks=[Listed([])])
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "swanlab"])
def test_a_missing_library_is_named_with_its_extra(name, monkeypatch):
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    options = {"experiment": "a"} if name == "mlflow" else {}
    with pytest.raises(ImportError, match=rf"^{name}: .* not installed; pip install 'purestep\[{name}\]'"):
        getattr(ps.callbacks, name)("place", **options)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"config": 3}, TypeError, "tracker: config must be a TrainConfig or a mapping, got 3"),
        ({"config": {"a": {"b": object}}}, TypeError, "tracker: config.a.b must be a number"),
        ({"config": {1: 2}}, TypeError, "tracker: config must have names that are strings, got 1"),
        ({"pictures": "a.png"}, TypeError, "tracker: pictures must be a list of paths, got 'a.png'"),
        ({"checkpoints": "run"}, TypeError, "tracker: checkpoints must be a ps.checkpoint.Checkpointer"),
        ({"wait": -1}, ValueError, "tracker: wait must be at least 0, got -1"),
        ({"wait": 1e11}, ValueError, "tracker: wait must be at most"),
        (
            {"config": {"a": {"b": 1}, "a.b": 2}},
            ValueError,
            "tracker: config must have each name once, got 'a.b'",
        ),
        ({"config": CYCLE}, ValueError, "tracker: config must have at most 32 levels"),
    ],
)
def test_mistakes_are_refused_before_the_run(options, error, said):
    with pytest.raises(error, match="^" + said):
        ps.callbacks.Tracker(**options)


def test_a_configuration_is_recorded_by_its_fields():
    calls = []
    ps.fit(STEP, start(), At(), steps=1, callbacks=[Listed(calls, config=ps.TrainConfig(seed=7))])
    assert of(calls, "open")[0][0].config == ps.TrainConfig(seed=7).to_dict()


def test_a_picture_that_another_callback_draws_is_recorded_when_it_has_changed(tmp_path):
    calls, path = [], tmp_path / "curves.png"

    def draw(progress):
        if progress.step == 1:
            path.write_bytes(b"half a picture")
        if progress.step == 6:
            path.write_bytes(picture_of("test", mx.zeros((1, 1))).png)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(Listed(calls, pictures=[path]), tmp_path, 16, draw)
    assert [(step, name) for step, name, _ in of(calls, "picture")] == [(8, "curves")]
