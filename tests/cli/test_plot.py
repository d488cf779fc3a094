"""`python -m purestep plot`: files, exit statuses, refusals, hostile runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from purestep import __main__
from purestep.cli import plot
from tests._loop.workload import STEP, TRANSFORM, At
from tests.cli.hostile import NAMES, Terminal, check

NAME = "".join(NAMES)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, *rows, config=None):
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config:
        (path / "config.toml").write_text(config)
    return path


def call(capsys, *arguments):
    code = plot.main([os.fspath(argument) for argument in arguments])
    said = capsys.readouterr()
    check(said.out + said.err)
    return code, said.out, said.err


def test_a_run_of_fit_is_drawn_in_every_format(capsys):
    state = ps.TrainState.create({"w": mx.zeros(4)}, TRANSFORM, seed=0)
    callbacks = [ps.callbacks.jsonl("run/metrics.jsonl")]
    ps.fit(STEP, state, At(), steps=12, callbacks=callbacks, log_every=1)
    files = ["out/a.png", "out/a.svg", "out/a.html"]
    code, out, err = call(capsys, "run", *(f"--out={name}" for name in files))
    assert (code, err) == (0, "")
    assert out.endswith("".join(f"written: {name}\n" for name in files))
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.html", "a.png", "a.svg"]
    assert any(line.startswith("loss") and "█" in line for line in out.splitlines())


def test_json_is_the_only_output(capsys):
    write("a", {"step": 1, "loss": 1.0}, config="rate = 1")
    write("b", {"step": 1, "loss": float("inf")}, config="rate = 2")
    code, out, err = call(capsys, "a", "b", "--json", "--out", "x.html")
    found = json.loads(out)
    assert (code, err, found["files"]) == (0, "", ["x.html"])
    assert found["differences"] == {"rate": [1, 2]}
    assert found["runs"][1]["figures"]["loss"]["last"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent"], "plot: there is no absent"),
        (["."], "plot: . must hold a metrics.jsonl; it is written by callbacks.jsonl"),
        (["empty"], "plot: empty/metrics.jsonl must have rows, got none"),
        (["a", "--out", "a.pdf"], "plot: --out must end with .png, .svg or .html, got 'a.pdf'"),
        (["a", "--out", "x.png"], "plot: --out must be a file, got the directory x.png"),
        (["a"] * 27, "plot: at most 26 runs can be told apart, got 27"),
        (["a", "--out", "a/metrics.jsonl/x.html"], "plot: "),
    ],
)
def test_refusals_are_one_line_and_write_nothing(capsys, here, arguments, said):
    write("a", {"step": 1, "loss": 1})
    write("empty")
    Path("x.png").mkdir()
    before = sorted(here.rglob("*"))
    code, out, err = call(capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(said)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_hostile_arguments(capsys, here, name):
    write("a", {"step": 1, "loss": 1})
    for arguments in ([name], ["a", name], ["a", "--out", name], [f"--{name}"], ["a", f"--out={name}.pdf"]):
        assert call(capsys, *arguments)[0] == 2
    assert sorted(path.name for path in here.iterdir()) == ["a"]


def test_hostile_runs_are_escaped_everywhere(capsys, monkeypatch):
    directory = NAME.replace("/", "").replace("\udcff", "")
    text = "".join(NAMES[:-2])
    config = f"value = {json.dumps(text)}"
    row = {"step": 1, "loss": 1, NAME: 2, **{f"{NAME}/{n}": n for n in range(3)}}
    write(directory, row, config=config.replace("\x7f", ""))
    write("b", {"step": 1, "loss": 2, "text": NAME}, config="value = 'x'")
    files = ["--out", "x.html", "--out", "x.svg", "--out", "x.png"]
    assert call(capsys, directory, "b", *files)[0] == 0
    assert call(capsys, directory, "b", "--json")[0] == 0
    check(Path("x.html").read_text())
    check(Path("x.svg").read_text().replace("\t", " "))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert plot.main([directory, "b"]) == 0
    assert {part[:2] for part in screen.getvalue().split("\x1b[")[1:]} <= {"0m", "1m"}


def test_pictures_without_matplotlib_name_the_extra(capsys, monkeypatch):
    write("a", {"step": 1, "loss": 1})
    found = plot.importlib.import_module

    def missing(name):
        if name.endswith("plotting.drawing"):
            raise ModuleNotFoundError(name="matplotlib")
        return found(name)

    monkeypatch.setattr(plot.importlib, "import_module", missing)
    code, _, err = call(capsys, "a", "--out", "a.png")
    assert (code, "pip install 'purestep[demo]', or write a .html" in err) == (2, True)
    assert call(capsys, "a", "--out", "a.html")[0] == 0


def test_a_page_and_json_need_no_extra(here):
    write("a", {"step": 1, "loss": 1})
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['rich', 'matplotlib', 'numpy'])); "
        "from purestep.__main__ import main; sys.argv = 'purestep plot a --json --out a.html'.split(); "
        "sys.exit(main())"
    )
    source = {"PYTHONPATH": str(Path(ps.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **source}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(plot, "read_runs", interrupted)
    monkeypatch.setattr(sys, "argv", ["purestep", "plot", "run"])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "plot: interrupted\n"
