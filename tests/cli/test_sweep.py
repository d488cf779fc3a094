"""The command `sweep`: a grid of runs, some as populations, and what it refuses."""

import json
import signal
from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from purestep.cli import plot, sweep
from purestep.cli.sweeping import grid, together
from tests.cli.train_runs import QUICK, prepared, rows_of
from tests.refusals import parts

RUN = (*QUICK[:8], *QUICK[10:])  # without samples


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module."""
    yield from prepared(tmp_path, monkeypatch)


def command(capsys, *arguments):
    code = sweep.main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err.strip()


def swept(capsys, *arguments):
    code, out, err = command(capsys, *RUN, "--max-steps", "6", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_population_gives_the_figures_of_runs_of_their_own(capsys):
    grid_of = ("--set", "learning_rate=0.01,0.03", "--set", "weight_decay=0.1,0.5")
    together = swept(capsys, *grid_of, "--out", "together")
    alone = swept(capsys, *grid_of, "--out", "alone", "--members", "1")
    assert len(together) == 4
    assert [each["settings"] for each in together] == [each["settings"] for each in alone]
    losses = [each["best_validation_loss"] for each in together]
    assert losses == sorted(losses)
    for a, b in zip(together, alone, strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)
        for mine, theirs in zip(rows_of(a["out"]), rows_of(b["out"]), strict=True):
            shared = {"step", "loss", "grad_norm", "learning_rate", "eval_loss"} & mine.keys()
            assert {name: mine[name] for name in shared} == pytest.approx(
                {name: theirs[name] for name in shared}, rel=1e-3
            )
        one, other = (ps.checkpoint.load(Path(each["out"]) / "state.safetensors") for each in (a, b))
        assert not ps.tree.differences(ps.tree.spec(one), ps.tree.spec(other))
        for x, y in zip(ps.tree.leaves(one), ps.tree.leaves(other), strict=True):
            assert mx.allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "muon", "--grad-accumulation-steps", "4"),  # the last window is incomplete
        ("--optimizer", "sgd", "--dtype", "float16"),
        ("--optimizer", "lamb", "--dtype", "bfloat16", "--measure", "grad_norms,drift"),
        ("--optimizer", "adafactor", "--lr-schedule", "wsd"),
        ("--optimizer", "ademamix", "--lr-schedule", "linear"),
        ("--optimizer", "lion", "--lr-schedule", "constant"),
    ],
    ids=lambda options: options[1],
)
def test_every_optimizer_serves_a_population(capsys, options):
    arrays = (
        "--set",
        "learning_rate=0.01,0.03",
        "--set",
        "max_grad_norm=0.1,1",
    )
    together = swept(capsys, *arrays, *options, "--out", "together")
    alone = swept(capsys, *arrays, *options, "--out", "alone", "--members", "1")
    loss = {str(each["settings"]): each["validation_loss"] for each in alone}
    for each in together:
        assert each["validation_loss"] == pytest.approx(loss[str(each["settings"])], rel=5e-3)


def test_runs_that_differ_in_more_than_arrays_train_one_after_another(capsys):
    found = swept(capsys, "--set", "optimizer=adamw,lion", "--set", "learning_rate=0.01,0.02", "--out", "s")
    assert {(each["settings"]["optimizer"], each["settings"]["learning_rate"]) for each in found} == {
        (name, rate) for name in ("adamw", "lion") for rate in (0.01, 0.02)
    }
    found = swept(capsys, "--set", "sizes.width=12,24", "--set", "seed=1,2", "--out", "t")
    assert len({each["validation_loss"] for each in found}) == 4


def test_a_run_that_is_not_finite_ends_no_other(capsys):
    found = swept(capsys, "--set", "learning_rate=0.01,1e30", "--out", "s")
    assert [each["reason"] for each in found] == ["steps", "a value is not finite"]
    assert found[1]["best_validation_loss"] is None


def test_plot_reads_the_runs_and_the_page_names_them(capsys, here):
    swept(capsys, "--set", "learning_rate=0.01,0.02", "--out", "s")
    page = (here / "s/sweep.html").read_text()
    assert "learning_rate" in page
    assert "learning_rate=0.01: " not in page  # the name of a run has its settings already
    runs = [str(path) for path in sorted((here / "s").glob("[!.]*")) if path.is_dir()]
    assert plot.main([*runs, "--json"]) == 0
    assert "0.02" in capsys.readouterr().out


def without_time(row):
    return {name: value for name, value in row.items() if name not in ("seconds", "out")}


def test_an_interrupted_sweep_goes_on_exactly(capsys, monkeypatch):
    """In the middle of a row, between checkpoints, and after runs that are done."""
    grid_of = ("--set", "optimizer=adamw,sgd", "--set", "learning_rate=0.01,1e30")
    # Rows of 4 steps, an evaluation after 3 and 6.
    options = ("--checkpoint-interval", "2", "--log-interval", "4", "--eval-interval", "3")
    want = swept(capsys, *grid_of, *options, "--out", "whole")
    inner, stops = together.trained, [lambda: signal.raise_signal(signal.SIGINT), raise_interrupt]
    started = []

    def stopping(runs, sessions, place, asked, say):
        started.append(runs[0].name)

        def say_and_stop(text):
            if stops and text.startswith("step 3 "):
                stops.pop(0)()

        return inner(runs, sessions, place, asked, say_and_stop)

    monkeypatch.setattr(together, "trained", stopping)
    for number in range(2):
        first = (*RUN, "--max-steps", "6", *grid_of, *options) if number == 0 else ("--resume",)
        code, out, err = command(capsys, *first, "--out", "parts", "--json")
        assert (code, out) == (130, "")
        assert "To continue: python -m purestep sweep --resume --out parts" in err
        assert ("0 of 4 runs" if number == 0 else "interrupted. To continue") in err
    code, out, err = command(capsys, "--resume", "--out", "parts", "--json")
    assert code == 0, err
    assert [name.partition(",")[0] for name in started] == ["optimizer=adamw"] * 2 + ["optimizer=sgd"] * 2
    got = json.loads(out)
    assert list(map(without_time, got)) == list(map(without_time, want))
    for a, b in zip(got, want, strict=True):
        assert [*map(without_time, rows_of(a["out"]))] == [*map(without_time, rows_of(b["out"]))]
        one, other = (ps.checkpoint.load(Path(each["out"]) / "state.safetensors") for each in (a, b))
        for x, y in zip(ps.tree.leaves(one), ps.tree.leaves(other), strict=True):
            assert mx.array_equal(x, y, equal_nan=True)
    assert not list(Path("parts/.sweep").glob("[0-9]*"))
    again = json.loads(command(capsys, "--resume", "--out", "parts", "--json")[1])
    assert again == got
    assert len(started) == 4  # nothing was trained


def raise_interrupt():
    raise KeyboardInterrupt


def test_a_run_of_its_own_goes_on_exactly(capsys, monkeypatch):
    grid_of = ("--set", "seed=1,2", "--eval-interval", "3")
    want = swept(capsys, *grid_of, "--out", "whole")
    inner = sweep.trained

    def stopping(session, callbacks):
        stop = lambda progress: signal.raise_signal(signal.SIGINT) if progress.step == 3 else None  # noqa: E731
        return inner(session, [*callbacks, stop])

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "trained", stopping)
        code, _, err = command(capsys, *RUN, "--max-steps", "6", *grid_of, "--out", "parts", "--json")
    assert (code, "0 of 2 runs" in err) == (130, True)
    code, out, err = command(capsys, "--resume", "--out", "parts", "--json")
    assert code == 0, err
    assert list(map(without_time, json.loads(out))) == list(map(without_time, want))


def test_what_is_done_is_shown_when_a_sweep_is_interrupted(capsys, monkeypatch):
    inner = together.trained

    def stopping(runs, sessions, place, asked, say):
        found = inner(runs, sessions, place, asked, say)
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(together, "trained", stopping)
    grid_of = ("--set", "learning_rate=0.01,0.02", "--set", "b1=0.8,0.9")
    code, out, err = command(capsys, *RUN, "--max-steps", "4", *grid_of, "--out", "s")
    assert (code, "2 of 4 runs are done" in err) == (130, True)
    assert "2 runs, the best first" in out
    assert Path("s/sweep.html").is_file()


def test_what_a_sweep_cannot_continue_is_refused(capsys, here):
    swept(capsys, "--set", "learning_rate=0.01,0.02", "--out", "s")
    plan = here / "s/.sweep/sweep.json"
    before = plan.read_text()
    for arguments, text, message in (
        (("--out", "none"), before, "--resume found no sweep in none"),
        (("--out", "s", "--seed", "3"), before, "--resume takes ... got seed"),
        (("--out", "s", "--set", "b1=1", "--members", "2"), before, "--resume takes ... --set, --members"),
        (("--out", "s"), "{", "must be a plan of version 1"),
        (("--out", "s"), before.replace('"version": 1', '"version": 2'), "must be a plan of version 1"),
        (("--out", "s"), before.replace('"members": 16', '"members": 0'), "is damaged"),
        (("--out", "s"), before.replace('"members"', '"limbs"'), "is damaged"),
    ):
        plan.write_text(text)
        code, _, err = command(capsys, "--resume", *arguments)
        assert code == 2
        with pytest.raises(ValueError, match=parts("sweep: ... " + message)):
            raise ValueError(err)
    plan.write_text(before)
    code, _, err = command(capsys, *RUN, "--set", "b1=0.8,0.9", "--out", "s")
    assert (code, "s already holds a sweep: add --resume" in err) == (2, True)


def test_a_wrong_model_is_refused_before_any_run_trains(capsys, here):
    code, _, err = command(capsys, *RUN, "--set", "sizes.width=12,13", "--out", "s")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "sizes.width must be a multiple" in err
    assert not (here / "s").exists()


def test_the_table_lists_the_best_first(capsys):
    code, out, _ = command(capsys, *RUN, "--max-steps", "4", "--set", "learning_rate=1e-9,0.05", "--out", "s")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    start = next(index for index, row in enumerate(rows) if row[:1] == ["learning_rate"])
    assert [rows[start + 1][0], rows[start + 2][0]] == ["0.05", "1e-09"]


def test_a_members_optimizer_is_that_of_its_configuration():
    sets = grid.planned(
        {"data": "text.txt", "out": "x"}, grid.swept(["learning_rate=0.1,0.2", "max_grad_norm=0,1,2"])
    )
    assert [len(group) for group in grid.grouped(sets, 16)] == [2, 4]
    assert [len(group) for group in grid.grouped(sets, 3)] == [2, 3, 1]


REFUSED = {
    "no grid": ((), "sweep: ... --set"),
    "no values": (("--set", "learning_rate"), "sweep: --set ... 'learning_rate'"),
    "unknown": (("--set", "lr=1,2"), "sweep: ... 'lr' ... learning_rate"),
    "type": (("--set", "learning_rate=fast,1"), "sweep: --learning_rate ... 'fast'"),
    "range": (("--set", "learning_rate=0.1,-1"), "learning_rate ... 0, got -1.0"),
    "twice": (("--set", "seed=1", "--set", "seed=2"), "sweep: --set seed ... twice"),
    "equal": (("--set", "seed=1,1"), "sweep: --set seed ... 1 twice"),
    "out": (("--set", "out=a,b"), "sweep: --set ... out"),
    "resume": (("--set", "seed=1", "--resume"), "sweep: --resume"),
    "profile": (("--set", "seed=1", "--profile"), "sweep: --profile"),
    "members": (("--set", "seed=1", "--members", "0"), "sweep: members ... 1, got 0"),
    "too many": (("--set", f"seed={','.join(map(str, range(1001)))}"), "sweep: ... 1000 runs, got 1001"),
    "failing": (
        ("--set", "seed=1", "--model", "users:failing", "--out", "f"),
        "users:failing ... no weights",
    ),
    "broken": (
        ("--set", "learning_rate=1,2", "--model", "users:broken", "--out", "g"),
        "users:broken ... unknown",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_sweeps_are_refused_in_one_line(capsys, name):
    arguments, message = REFUSED[name]
    code, out, err = command(capsys, *RUN[:8], *arguments)
    assert code == 2
    assert not out or "--model" in arguments
    assert len(err.splitlines()) == 1
    with pytest.raises(ValueError, match=parts(message)):
        raise ValueError(err)


def test_a_directory_that_exists_is_refused(capsys, here):
    (here / "s/seed=1").mkdir(parents=True)
    code, _, err = command(capsys, *RUN, "--set", "seed=1,2", "--out", "s")
    assert code == 2
    assert "s/seed=1 already exists" in err


def test_help_names_the_options(capsys):
    code, out, _ = command(capsys, "--help")
    assert code == 0
    assert "--set NAME=VALUE,VALUE" in out
    assert "--members" in out
