"""Sessions of short demos: interrupted phases end with the same bits; files and reports."""

import json

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep.demos.shared import session as shared
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import StoppedError
from purestep.demos.shared.session import Session, Settings
from tests.demos.runs import Asked, options

TRANSFORM = ps.optimizers.adam(0.1)
STEPS = 6


def loss_fn(params, batch, rng):
    return mx.square(params["w"] - batch["x"]).mean()


def batch_of(state):
    return {"x": mx.random.normal((4,), key=ps.rng.fold_in(mx.random.key(3), state.step))}


def a_session(path, asked=None):
    directory = RunDirectory(str(path))
    if not directory.run.exists():
        directory.start({})
    return Session(Settings(STEPS, compile=False), directory, Console(quiet=True), asked or Asked())


def work(session, **options):
    """Train two phases, the second from the first."""
    step = session.step(loss_fn, TRANSFORM)
    measure = lambda state: {"w": state.params["w"].item()}  # noqa: E731
    params, options = {"w": mx.array(5.0)}, {"tokens": 4, "measure": measure, **options}
    for phase in ("first", "second"):
        state = ps.TrainState.create(params, TRANSFORM)
        params = session.train(phase, state, step, batch_of, steps=STEPS, **options).params
    return {"w": params["w"].item()}


def test_phases_interrupted_anywhere_end_with_the_bits_and_rows_of_a_run_that_was_not(tmp_path):
    whole = a_session(tmp_path / "whole")
    expected = work(whole)
    rows = [whole.history(phase) for phase in ("first", "second")]
    assert [[row["step"] for row in part] for part in rows] == [list(range(STEPS + 1))] * 2
    assert "w" in rows[0][0]
    assert "loss" not in rows[0][0]
    assert rows[1][-1]["w"] == expected["w"]
    interrupted = 0
    for after in range(1, 2 * STEPS * 2):
        path = tmp_path / str(after)
        try:
            work(a_session(path, Asked(after)))
        except StoppedError:
            interrupted += 1
        resumed = a_session(path)
        assert work(resumed) == expected
        assert [resumed.history(phase) for phase in ("first", "second")] == rows
    assert interrupted > STEPS


def test_rows_that_a_crash_left_behind_the_saved_state_are_dropped(tmp_path, monkeypatch):
    session = a_session(tmp_path)
    save, saves = ps.checkpoint.save, []

    def dying(file, state):
        saves.append(save(file, state))
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ps.checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        work(session)
    session.directory.record({"phase": "first", "step": 4, "loss": 0.0})
    session.directory.record({"phase": "first", "step": 5, "loss": 0.0})
    monkeypatch.undo()
    resumed = a_session(tmp_path)
    assert work(resumed) == work(a_session(tmp_path / "whole"))
    assert [row["step"] for row in resumed.history("first")] == list(range(STEPS + 1))


def test_a_loss_that_is_not_a_number_stops_the_phase_and_keeps_the_last_good_state(tmp_path):
    session = a_session(tmp_path)
    poisoned = lambda state: {"x": mx.where(state.step == 3, mx.nan, 1.0)[None]}  # noqa: E731
    state = ps.TrainState.create({"w": mx.array(5.0)}, TRANSFORM)
    step = session.step(loss_fn, TRANSFORM)
    with pytest.raises(
        FloatingPointError, match="loss and grad_norm .*not finite .*step 4 of it; .*params.w"
    ):
        session.train("it", state, step, poisoned, steps=STEPS, tokens=1)
    assert ps.checkpoint.load(tmp_path / "it.safetensors", like=state).step.item() == 3


def conduct(name="toy", work=work, **given):
    return shared.conduct(options(**{"out": "run", **given}), name, STEPS, work)


def test_a_run_prints_one_line_of_json_or_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert conduct() == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"w", "seconds", "peak_memory_mb", "out"}
    assert conduct(out=None, json=False) == 0
    said = capsys.readouterr().out
    assert "first 6/6  0:00 left  loss" in said
    assert "runs/toy" in said
    assert json.loads((tmp_path / "runs/toy/run.json").read_text())["settings"] == {
        "steps": STEPS, "seed": 0, "compile": False,
    }  # fmt: skip


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def stopped(session):
        session._asked = Asked(3)
        return work(session)

    assert conduct(work=stopped, json=False) == 130
    assert "python -m purestep demo toy --resume --out run" in capsys.readouterr().out
    assert conduct(resume=True) == 0
    assert json.loads(capsys.readouterr().out)["w"] == work(a_session(tmp_path / "whole"))["w"]


def test_a_number_that_is_lost_ends_the_run_with_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def broken(session):
        raise FloatingPointError("loss not finite")

    assert conduct(work=broken) == 1
    assert capsys.readouterr().err == "demo: loss not finite\n"


def test_what_cannot_be_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, message in (
        ({"steps": 0}, "demo: --steps .* 1, got 0"),
        ({"seed": -1}, "demo: --seed .* 0, got -1"),
        ({"resume": True}, "demo: --resume .*no run in run"),
    ):
        with pytest.raises(ValueError, match=message):
            conduct(**given)
    assert not list(tmp_path.iterdir())
    assert conduct() == 0
    with pytest.raises(ValueError, match="demo: --out run already"):
        conduct()
    with pytest.raises(ValueError, match="demo: --seed .*4, .*run .* 0: "):
        conduct(resume=True, seed=4)
    with pytest.raises(ValueError, match="demo: run .*toy, not .*other"):
        conduct(name="other", resume=True)


def test_a_state_without_the_metrics_of_its_steps_is_not_gone_on_with(tmp_path):
    session = a_session(tmp_path)
    work(session)
    session.directory.rewrite([row for row in session.directory.history() if row["step"] != 3])
    with pytest.raises(ValueError, match=r"demo: .*metrics.jsonl lacks rows of first"):
        work(a_session(tmp_path))


def test_a_phase_says_which_of_how_many_it_is(tmp_path, capsys):
    session = a_session(tmp_path)
    session.console, session._phases = Console(), ("first", "second")
    work(session, shown={"w": "weight", "absent": "x", "grad_norm": "|g|"})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("first (1 of 2) 1/6  ")
    assert said[-1].startswith("second (2 of 2) 6/6  0:00 left  weight ")
    assert "|g| " in said[-1]
