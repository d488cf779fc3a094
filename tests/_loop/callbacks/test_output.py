"""Output: lines, files, rates, samples, bars and pictures."""

import io
import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
import time
from functools import partial

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.display import live
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._loop.callbacks.lines import row_of
from purestep._loop.callbacks.output import Guarded, append_line
from purestep._loop.core.progress import Progress
from purestep._loop.monitors.speed import Throughput
from tests._loop.workload import STEP, At, batch_of, loss_fn, start

callbacks = ps.callbacks
EVALUATION = ps.Evaluation(ps.eval_step(loss_fn), [batch_of(99)], every=4)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_rows_and_evaluations_and_continues(tmp_path):
    path = tmp_path / "logs" / "metrics.jsonl"

    def fitted(steps, folder):
        with ps.checkpoint.Checkpointer(tmp_path / folder) as checkpointer:
            return ps.fit(
                STEP, start(), At(), steps=steps, evaluate=EVALUATION, checkpointer=checkpointer,
                callbacks=[callbacks.jsonl(path)], log_every=2,
            )  # fmt: skip

    result = fitted(8, "run")
    rows = rows_of(path)
    assert [row["step"] for row in rows] == [2, 4, 4, 6, 8, 8]
    assert [row["loss"] for row in rows if "loss" in row] == result.history.column("loss")[1]
    assert [row["eval_loss"] for row in rows if "eval_loss" in row] == result.history.column("eval_loss")[1]
    assert rows[1]["samples"] == 32
    # A crash cut the last line short, and rows of steps after the last checkpoint are there.
    path.write_text(path.read_text() + '{"step": 10, "loss": 1.0}\n{"step": 12, "lo')
    fitted(12, "run")
    assert [row["step"] for row in rows_of(path)] == [2, 4, 4, 6, 8, 8, 10, 12, 12]
    fitted(2, "other")
    assert [row["step"] for row in rows_of(path)] == [2, 2]
    assert len(rows_of(path.with_name("metrics.jsonl.before"))) == 9


def test_new_runs_keep_the_files_of_all_earlier_ones(tmp_path):
    for number in (1, 2, 3):
        shown = [
            callbacks.jsonl(tmp_path / "m"),
            callbacks.sampler(lambda s: "x", every=1, path=tmp_path / "s"),
        ]
        ps.fit(STEP, start(), At(), steps=number, callbacks=shown, log_every=1)
    for name in "ms":
        found = [(tmp_path / f"{name}{end}").read_text().count("\n") for end in (".before", ".before-2", "")]
        assert found == [1, 2, 3]


def test_a_row_is_whole_or_absent(tmp_path):
    """A disk that takes a part of a row, and has room again later."""
    path = tmp_path / "metrics.jsonl"
    write = Guarded("jsonl", path, partial(append_line, path))
    write('{"step": 1}')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.warns(callbacks.MetricsWarning, match="cannot be written, training goes on"):
            write('{"step": 2}')
        write('{"step": 3}')  # one warning alone: another one would be an error here
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write('{"step": 4}')
    assert rows_of(path) == [{"step": 1}, {"step": 4}]


def test_a_metric_keeps_its_name_beside_the_counts_but_a_row_has_its_step(tmp_path):
    progress = progress_at(5, row={"step": 0.5, "tokens": 7.0})
    row = row_of(progress, progress.row)
    assert (row["step"], row["tokens"], row["samples"]) == (5, 7.0, 40)
    assert next(iter(row)) == "step"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("place", ["pipe", "/dev/full"])
def test_no_output_ends_a_run(encoding, place):
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "import purestep as ps\n"
        "text = 'gr\\xfc\\u2192\\ud800'\n"
        "shown = [ps.callbacks.log(), ps.callbacks.sampler(lambda state: text, every=2)]\n"
        "step = lambda state, batch: (state, {'l\\xf6ss': batch['x']})\n"
        "import mlx.core as mx, sys\n"
        "texts = ps.Evaluation(lambda state: text, every=2, name='text')\n"
        "shown += [ps.callbacks.progress()]\n"
        "batches = [{'x': mx.array(1.0)}] * 4\n"
        "result = ps.fit(step, {'step': mx.array(0)}, batches, evaluate=texts, callbacks=shown)\n"
        "print(result.reason, file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "CODE": code}
    made = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$CODE" {"| cat" if place == "pipe" else "> " + place}'],
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    said = made.stderr.decode(encoding)
    assert "epochs" in said.splitlines(), said
    if place == "pipe":
        assert r"\ud800" in made.stdout.decode(encoding)
    else:
        assert said.count("MetricsWarning: log: standard output") == 1
        assert said.count("MetricsWarning: sampler: standard output") == 1
        assert said.count("MetricsWarning: progress: the output") == 1


def test_jsonl_writes_nan_as_null_and_survives_a_full_disk(tmp_path):
    path = tmp_path / "metrics.jsonl"
    numbers = ps.Evaluation(lambda state: {"a": math.nan, "b": math.inf}, every=1)
    ps.fit(STEP, start(), At(), steps=1, evaluate=numbers, callbacks=[callbacks.jsonl(path)])
    row = rows_of(path)[-1]
    assert (row["eval_a"], row["eval_b"]) == (None, None)

    class Vanishing(ps.callbacks.Callback):
        def on_train_begin(self, run):
            (tmp_path / "gone" / "metrics.jsonl").unlink()
            (tmp_path / "gone").rmdir()

    gone = callbacks.jsonl(tmp_path / "gone" / "metrics.jsonl")
    with pytest.warns(callbacks.MetricsWarning, match="cannot be written, training goes on") as caught:
        result = ps.fit(STEP, start(), At(), steps=5, callbacks=[gone, Vanishing()], log_every=1)
    assert result.reason == "steps"
    assert len(caught) == 1


def test_log_writes_lines_to_a_function_or_a_logger(caplog):
    lines = []
    text = ps.Evaluation(lambda state: "one\n\x1b[31mtwo", every=4, name="sample")
    ps.fit(STEP, start(), At(), steps=4, evaluate=[EVALUATION, text], callbacks=[callbacks.log(lines.append)])
    assert lines[0].startswith("step 4/4  loss ")
    assert "eval_loss" in lines[1]
    assert lines[2] == r"step 4  sample: one\n\x1b[31mtwo"
    with caplog.at_level(logging.INFO):
        ps.fit(STEP, start(), At(), steps=1, callbacks=[callbacks.log(logging.getLogger("train"))])
    assert caplog.records[0].message.startswith("step 1/1")


def test_lines_leave_the_figures_of_single_layers_to_files_and_the_history(tmp_path):
    step = ps.train_step(loss_fn, ps.optimizers.adam(0.05), measure=[ps.metrics.grad_norms()])
    lines, out = [], io.StringIO()
    shown = [
        callbacks.log(lines.append),
        callbacks.progress(console=Console(file=out, width=500)),
        callbacks.jsonl(tmp_path / "rows"),
    ]
    result = ps.fit(step, start(), At(), steps=2, callbacks=shown)
    assert "grad_norm " in lines[0]
    assert "|g| " in out.getvalue()
    assert not any("/w" in text for text in (*lines, out.getvalue()))
    assert rows_of(tmp_path / "rows")[0]["grad_norms/w"] == result.history.column("grad_norms/w")[1][0]


def progress_at(step, row=None, seconds=0.0, **others):
    counts = 8 * step, 80 * step, seconds
    made = Progress(step, None, 0, None, None, {}, row, {}, None, {}, callbacks.History(), *counts)
    return made._replace(**others)


def test_throughput_leaves_out_the_first_step_evaluations_and_the_step_made_meanwhile():
    """Steps of 1 s; the fourth was made while an evaluation took 100 s, and ends 1 ms after it."""
    meter = Throughput()
    meter.on_step_end(progress_at(1, seconds=5.0))
    meter.on_step_end(progress_at(2, seconds=6.0))
    meter.on_step_end(progress_at(3, {}, seconds=7.0))
    assert meter.rates == {"steps_per_second": 1.0, "samples_per_second": 8.0, "tokens_per_second": 80.0}
    meter.on_eval_end(progress_at(3, seconds=7.0))
    meter.on_step_end(progress_at(4, {}, seconds=107.001))
    assert meter.rates == {}
    meter.on_checkpoint(progress_at(4, seconds=107.001))
    meter.on_step_end(progress_at(5, seconds=200.001))
    meter.on_step_end(progress_at(6, seconds=201.001))
    meter.on_step_end(progress_at(7, {}, seconds=201.002, alone=True))
    assert meter.rates["steps_per_second"] == pytest.approx(1.0)
    assert meter.history.column("steps_per_second")[0] == [3, 7]


@pytest.mark.parametrize("kind", ["rows", "evaluation", "callback"])
def test_no_row_of_a_run_has_a_rate_that_no_step_reached(kind):
    """A step sleeps for 10 ms while it is built, so at most 100 are made in a second."""

    def slow(state, batch):
        time.sleep(0.01)
        return STEP(state, batch)

    rows, meter = [], callbacks.throughput(flops_per_step=1.0, peak_flops=1e3)
    lagging = lambda progress: time.sleep(0.03) if progress.step == 6 else None  # noqa: E731
    text = ps.Evaluation(lambda state: "text", every=6, name="sample")
    options = {
        "rows": {"callbacks": [meter]},
        "evaluation": {"callbacks": [meter], "evaluate": text},
        "callback": {"callbacks": [lagging, meter]},
    }[kind]
    keep = lambda progress: rows.append(progress.row)  # noqa: E731
    options["callbacks"].append(keep)
    ps.fit(slow, start(), At(), steps=7, log_every=2, **options)
    rates = [row.get("steps_per_second") for row in rows if row is not None]
    assert len(rates) == 4
    assert all(0 < rate <= 100 for rate in rates[1:3])
    assert rates[3] is None  # the last step alone
    assert all(row["mfu"] <= 0.1 for row in rows if row is not None and "mfu" in row)


def test_a_resumed_sampler_repeats_no_step(tmp_path):
    def fitted(*others):
        with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
            writing = callbacks.sampler(lambda state: "x", every=2, path=tmp_path / "text")
            ps.fit(
                STEP, start(), At(), steps=8, checkpointer=checkpointer, save_every=4,
                callbacks=[writing, *others],
            )  # fmt: skip

    class KilledError(BaseException):
        pass

    def kill(progress):
        if progress.step == 7:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(kill)
    fitted()
    assert (tmp_path / "text").read_text().splitlines() == [f"step {step}  x" for step in (2, 4, 6, 8)]
    with pytest.raises(TypeError, match="sampler: sample .* string.*, got 3"):
        ps.fit(STEP, start(), At(), steps=1, callbacks=[callbacks.sampler(lambda state: 3, every=1)])


def test_a_sampler_prints_or_appends_escaped_text(tmp_path, capsys):
    path = tmp_path / "samples" / "text.txt"
    printing = callbacks.sampler(lambda state: "a\x1bb", every=2)
    appending = callbacks.sampler(lambda state: ["c", "d"], every=3, path=path)
    ps.fit(STEP, start(), At(), steps=6, callbacks=[printing, appending])
    assert capsys.readouterr().out.splitlines() == [rf"step {step}  a\x1bb" for step in (2, 4, 6)]
    assert path.read_text().splitlines() == ["step 3  c", "step 3  d", "step 6  c", "step 6  d"]


def test_every_keeps_the_clock_of_what_it_calls_rarely():
    """Steps of a second; an evaluation of 100 s between two calls."""
    now = 0.0
    meter = Throughput()
    rarely = callbacks.every(10, meter)
    for step in range(1, 31):
        now += 1.0
        rarely.on_step_end(progress_at(step, {} if step % 10 == 0 else None, now))
        if step % 5 == 0:
            now += 100.0
            rarely.on_eval_end(progress_at(step))
    assert meter.rates["steps_per_second"] == 1.0


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("n", [1, 10])
def test_the_bar_knows_the_rate_and_the_time_left(monkeypatch, start, n):
    """Steps of 1 s, evaluations of 50 s every 100 steps, checkpoints of 30 s every 2 steps."""
    now = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    bar = callbacks.progress(console=Console(file=io.StringIO(), width=200))
    rarely = callbacks.every(n, bar)
    rarely.on_train_begin(callbacks.Run(STEP, None, start, start + 1000, callbacks.History(), 10, ("eval",)))
    for step in range(1, 251):
        now[0] += 1.0
        # A run that begins from the state of another counts its own tokens alone.
        progress = progress_at(start + step, {"loss": 1.0} if step % 10 == 0 else None)
        progress = progress._replace(steps=start + 1000, tokens=80 * step)
        rarely.on_step_end(progress)
        if step % 100 == 0:
            now[0] += 50.0
            rarely.on_eval_end(progress._replace(evaluated={"eval_loss": 1.0}))
        if step % 2 == 0:
            now[0] += 30.0
            rarely.on_checkpoint(progress)
    shown = getattr(bar, "_shown")  # noqa: B009
    assert (shown._left, shown.tokens_per_second()) == (750 + 8 * 50, 80.0)


def test_a_closed_pipe_does_not_end_the_run():
    """Rich would raise SystemExit, and the state would be lost."""
    code = (
        "import purestep as ps, mlx.core as mx, sys\n"
        "step = lambda state, batch: (state, {'loss': batch['x']})\n"
        "batches = [{'x': mx.array(1.0)}] * 2000\n"
        "shown = [ps.callbacks.progress(), ps.callbacks.log()]\n"
        "result = ps.fit(step, {'step': mx.array(0)}, batches, callbacks=shown, log_every=1)\n"
        "print(result.reason, file=sys.stderr)\n"
    )
    made = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"$CODE\" | head -1"],
        capture_output=True, text=True, env={**os.environ, "CODE": code}, check=False,
    )  # fmt: skip
    assert made.stdout.count("\n") == 1
    assert "epochs" in made.stderr.splitlines()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("steps", [12, None])
def test_the_bar_fits_the_terminal(width, steps):
    out = io.StringIO()
    console = EscapingConsole(file=out, force_terminal=True, width=width, color_system=None)
    source = At() if steps else [batch_of(number) for number in range(12)]
    ps.fit(
        STEP, start(), source, steps=steps, evaluate=EVALUATION, log_every=2,
        callbacks=[callbacks.progress("train", console=console)],
    )  # fmt: skip
    text = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", out.getvalue())
    lines = [line for line in text.replace("\r", "\n").split("\n") if line.startswith("train")]
    assert any("12" in line and "loss" in line for line in lines)
    assert all(len(line) <= width for line in lines)


def test_outside_a_terminal_the_bar_is_a_line_a_row():
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=200)
    ps.fit(STEP, start(), At(), steps=6, log_every=2, callbacks=[callbacks.progress(console=console)])
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]


def test_plots_draws_a_picture(tmp_path):
    path = tmp_path / "pictures" / "curves.png"
    tokens = [{**batch_of(number), "t": mx.zeros((8, 3), mx.int32)} for number in range(4)]
    ps.fit(
        STEP, start(), tokens, steps=20, evaluate=EVALUATION, log_every=2, callbacks=[callbacks.plots(path)]
    )
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1296, 960)  # two rows: loss, learning rate; gradient norm, throughput


def test_a_picture_that_cannot_be_written_is_a_warning_after_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(callbacks.MetricsWarning, match=r"plots: .*a\.png cannot be written"):
        result = ps.fit(
            STEP, start(), At(), steps=4, callbacks=[callbacks.plots(tmp_path / "file" / "a.png")]
        )
    assert result.reason == "steps"
    with pytest.raises(ValueError, match=r"plots: path .* .png, got 'a\.xyz'"):
        callbacks.plots("a.xyz")


def test_without_the_extra_the_error_names_it():
    code = (
        "import sys\n"
        "for name in ('rich', 'rich.console', 'matplotlib', 'matplotlib.axes'): sys.modules[name] = None\n"
        "import purestep as ps\n"
        "for make in (ps.callbacks.progress, lambda: ps.callbacks.plots('a.png')):\n"
        "    try: make()\n"
        "    except ImportError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'purestep[cli]'" in said
    assert "pip install 'purestep[demo]'" in said
