"""Sessions of demos: phases that are stopped anywhere end with the same bits; files, words and reports."""

import errno
import json
import signal

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep._checkpoint.run import store
from purestep.demos.shared import session as shared
from purestep.demos.shared.run_directory import RunDirectory, WriteError
from purestep.demos.shared.running import StoppedError
from purestep.demos.shared.session import Session, Settings
from tests._loop.workload import assert_same
from tests.demos.runs import acting, crash, options, rows, state, stop

TRANSFORM = ps.optimizers.adam(0.1)
STEPS = 9  # measured at every second one, and at the last
PHASES = ("first", "second")


def loss_fn(params, batch, rng):
    return mx.square(params["w"] - batch["x"]).mean()


class Normal:
    """Batches by step; from the step `broken` on they are not finite."""

    def __init__(self, broken=None):
        self.broken = broken

    def at(self, step):
        batch = mx.random.normal((4,), key=ps.rng.fold_in(mx.random.key(3), step))
        return {"x": batch if self.broken is None or step < self.broken else mx.full((4,), mx.nan)}


def a_session(path, phases=PHASES, console=None):
    directory = RunDirectory(str(path))
    if not directory.run.exists():
        directory.start({})
    return Session("toy", Settings(STEPS, compile=False), directory, console or Console(quiet=True), phases)


def phase_of(session, phase, params, source=None):
    evaluation = ps.Evaluation(lambda state: {"w": state.params["w"]}, name="at")
    start = ps.TrainState.create(params, TRANSFORM)
    step = session.step(loss_fn, TRANSFORM)
    return session.fit(step, start, source or Normal(), evaluate=[evaluation], phase=phase)


def work(session):
    """Train two phases, the second from the first."""
    params = {"w": mx.array(5.0)}
    for phase in PHASES:
        result = phase_of(session, phase, params)
        params = result.state.params
    return {"w": params["w"].item(), "first": result.history.column("at_w")[1][0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, work(a_session(path))


def check_same(path, whole):
    assert work(a_session(path)) == whole[1]
    for phase in PHASES:
        assert_same(state(path, phase), state(whole[0], phase))
        assert rows(path, phase) == rows(whole[0], phase)


def test_a_phase_is_measured_before_its_first_step_and_at_intervals(whole):
    path, result = whole
    assert [row["step"] for row in rows(path, "first") if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(path, "second") if "at_w" in row] == [2, 4, 6, 8, 9]
    assert result["first"] == rows(path, "first")[-1]["at_w"]
    assert result["w"] == rows(path, "second")[-1]["at_w"]


@pytest.mark.parametrize("act", [stop, crash])
@pytest.mark.parametrize("at", [1, 2, STEPS, STEPS + 1, STEPS + 6, 2 * STEPS])
def test_phases_that_are_stopped_anywhere_end_with_the_bits_and_rows_of_a_run_that_is_not(
    tmp_path, whole, act, at
):
    with acting(at, act), pytest.raises((StoppedError, KeyboardInterrupt)) as caught:
        work(a_session(tmp_path))
    if act is stop:
        phase, step = ("first", at) if at <= STEPS else ("second", at - STEPS)
        assert str(caught.value) == f"after step {step} of {phase}; the state is saved"
        assert state(tmp_path, phase)["step"].item() == step
    check_same(tmp_path, whole)


def test_a_signal_between_two_phases_ends_the_run_before_the_next(tmp_path, whole):
    with ps.checkpoint.signals():
        params = phase_of(session := a_session(tmp_path), "first", {"w": mx.array(5.0)}).state.params
        stop()
        with pytest.raises(StoppedError, match="^before the first step of second$"):
            phase_of(session, "second", params)
    check_same(tmp_path, whole)


def test_an_ended_phase_is_not_trained_or_shown_again(tmp_path, whole, capsys):
    work(a_session(tmp_path))
    work(a_session(tmp_path, console=Console()))
    assert capsys.readouterr().out == ""
    with acting(1, crash):
        check_same(tmp_path, whole)


def test_a_value_that_is_not_finite_says_where_the_step_and_the_last_good_checkpoint_are(tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        phase_of(a_session(tmp_path), "first", {"w": mx.array(5.0)}, Normal(broken=3))
    bundle, checkpoints = tmp_path / "first/bundles/step_00000003", tmp_path / "first/checkpoints"
    assert str(caught.value) == (
        "first: grad_norm is not finite at step 4; the first parameter that is not finite is w; "
        f"the step is kept in {bundle}; the checkpoint of step 2 is kept in {checkpoints}"
    )
    assert ps.replay.load(bundle).state.step.item() == 3
    assert state(tmp_path, "first")["step"].item() == 2
    with pytest.raises(FloatingPointError) as again:  # a resumed run says the same
        phase_of(a_session(tmp_path), "first", {"w": mx.array(5.0)}, Normal(broken=3))
    assert str(again.value) == str(caught.value).replace(str(bundle), f"{bundle}.2")


def test_a_checkpoint_that_finds_the_value_first_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "rows_every", lambda steps: 5)
    said = "at step 4; .*; the step is kept in .*step_00000003; the checkpoint of step 2 is kept in "
    with pytest.warns(ps.replay.ReplayWarning), pytest.raises(FloatingPointError, match=said):
        phase_of(a_session(tmp_path, ()), "", {"w": mx.array(5.0)}, Normal(broken=3))


def test_a_first_step_that_is_not_finite_leaves_no_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="; no checkpoint "):
        phase_of(a_session(tmp_path, ()), "", {"w": mx.array(5.0)}, Normal(broken=0))


def test_a_full_disk_says_how_to_go_on(tmp_path, monkeypatch, whole):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", full)
        with (
            pytest.warns(ps.CheckpointWarning, match="No space left on device"),
            pytest.raises(WriteError, match="No space left.*--resume --out"),
        ):
            work(a_session(tmp_path))
    check_same(tmp_path, whole)


def test_a_run_that_another_process_writes_is_refused(tmp_path):
    with ps.checkpoint.Checkpointer(tmp_path / "first/checkpoints") as writer:
        writer.save({"w": mx.zeros(1)}, step=99)
        writer.delete(99)  # the lock stays
        with pytest.raises(WriteError, match="^demo: fit: .* written by pid"):
            work(a_session(tmp_path))


def conduct(name="toy", work=work, **given):
    return shared.conduct(options(**{"out": "run", **given}), name, Settings(STEPS), work, phases=PHASES)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_prints_one_line_of_json_or_a_table(here, capsys):
    assert conduct() == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"w", "first", "seconds", "peak_memory_mb", "out"}
    assert conduct(out=None, json=False) == 0
    said = capsys.readouterr().out
    assert "first (1 of 2) 9/9  0:00 left  loss" in said
    assert "second (2 of 2) 9/9  0:00 left  loss" in said
    assert said.endswith("\nfirst/ and second/ are in runs/toy/\n")
    assert json.loads((here / "runs/toy/run.json").read_text())["settings"] == {
        "steps": STEPS, "seed": 0, "compile": False,
    }  # fmt: skip


def test_an_interrupted_run_says_how_to_go_on_and_does(here, capsys, whole):
    with acting(3, stop):
        assert conduct(json=False) == 130
    said = capsys.readouterr().out
    command = "python -m purestep demo toy --resume --out run"
    assert f"interrupted after step 3 of first; the state is saved. To continue:\n  {command}\n" in said
    assert conduct(resume=True) == 0
    assert json.loads(capsys.readouterr().out)["w"] == whole[1]["w"]


def lost_kernel(*arguments):
    """Fail as MLX does when Ctrl-C in a terminal also ends the compiler that it runs."""
    signal.raise_signal(signal.SIGINT)
    raise RuntimeError("Could not load C++ shared library")


@pytest.mark.parametrize("place", ["before", "in the step"])
def test_ctrl_c_before_the_first_step_or_in_its_compilation_says_how_to_go_on(
    here, capsys, monkeypatch, whole, place
):
    def interrupted(session):
        if place == "before":
            signal.raise_signal(signal.SIGINT)
        else:
            session.step = lambda *arguments: lost_kernel
        return work(session)

    assert conduct(work=interrupted, json=False) == 130
    said = capsys.readouterr().out
    command = "python -m purestep demo toy --resume --out run"
    assert f"interrupted before the first step of first. To continue:\n  {command}\n" in said
    assert conduct(resume=True) == 0
    assert json.loads(capsys.readouterr().out)["w"] == whole[1]["w"]


def test_what_cannot_be_run_is_refused(here):
    for given, message in (
        ({"steps": 0}, "demo: --steps .* 1, got 0"),
        ({"seed": -1}, "demo: --seed .* 0, got -1"),
        ({"resume": True}, "demo: --resume .*no run in run"),
    ):
        with pytest.raises(ValueError, match=message):
            conduct(**given)
    assert not list(here.iterdir())
    assert conduct() == 0
    with pytest.raises(ValueError, match="demo: --out run already"):
        conduct()
    with pytest.raises(ValueError, match="demo: --seed .*4, .*run .* 0: "):
        conduct(resume=True, seed=4)
    with pytest.raises(ValueError, match="demo: run .*toy, not .*other"):
        conduct(name="other", resume=True)


def test_a_run_of_an_earlier_layout_is_refused_untouched(here):
    assert conduct() == 0
    for phase in PHASES:
        checkpoint = next((here / "run" / phase / "checkpoints").glob("step_*/state.safetensors"))
        checkpoint.rename(here / "run" / f"{phase}.safetensors")
        (here / "run" / phase).rename(here / phase)
    (here / "run/metrics.jsonl").write_text('{"phase": "first", "step": 0}\n')
    before = sorted(path.name for path in (here / "run").iterdir())
    message = "an earlier version of purestep wrote its state into first.safetensors. Start another run"
    with pytest.raises(ValueError, match=message):
        conduct(resume=True)
    assert sorted(path.name for path in (here / "run").iterdir()) == before
