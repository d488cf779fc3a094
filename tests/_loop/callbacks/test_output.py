"""Output: lines, files, rates, samples, bars and pictures."""

import io
import json
import logging
import math
import re
import subprocess
import sys

import mlx.core as mx
import pytest
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._loop.callbacks.rates import Throughput
from purestep._loop.core.progress import Progress
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


def progress_at(step, row=None):
    return Progress(
        step, None, 0, None, None, {}, row, {}, None, {}, callbacks.History(), 8 * step, 80 * step, 0.0
    )


def test_throughput_leaves_out_the_first_step_and_evaluations():
    times = iter([5.0, 6.0, 7.0, 107.0, 108.0])
    meter = Throughput(clock=lambda: next(times))
    meter.on_step_end(progress_at(1))
    meter.on_step_end(progress_at(2))
    meter.on_step_end(progress_at(3, row={}))
    assert meter.rates == {"steps_per_second": 1.0, "samples_per_second": 8.0, "tokens_per_second": 80.0}
    meter.on_eval_end(progress_at(3))
    meter.on_step_end(progress_at(4, row={}))
    assert meter.rates["steps_per_second"] == 1.0
    assert meter.history.column("steps_per_second") == ([3, 4], [1.0, 1.0])


def test_a_sampler_prints_or_appends_escaped_text(tmp_path, capsys):
    path = tmp_path / "samples" / "text.txt"
    printing = callbacks.sampler(lambda state: "a\x1bb", every=2)
    appending = callbacks.sampler(lambda state: ["c", "d"], every=3, path=path)
    ps.fit(STEP, start(), At(), steps=6, callbacks=[printing, appending])
    assert capsys.readouterr().out.splitlines() == [rf"step {step}  a\x1bb" for step in (2, 4, 6)]
    assert path.read_text().splitlines() == ["step 3  c", "step 3  d", "step 6  c", "step 6  d"]


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
    width = int.from_bytes(content[16:20], "big")
    assert width > 2000  # four panels: loss, learning rate, gradient norm, throughput


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
