"""Every command escapes text from files, paths, arguments and errors."""

import io
import json
import os
import shutil
import sys

import mlx.core as mx
import pytest
from rich.table import Table

import purestep as ps
from purestep import __main__
from purestep._checkpoint.format.header import seal
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep._replay import bundle
from purestep.checkpoint import to_bytes
from purestep.cli import demo, inspect
from purestep.cli import replay as replay_command
from tests.cli.hostile import NAMES, Terminal, check

NAME = "".join(NAMES)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURESTEP_BLAS", "bundled")
    return tmp_path


def call(capsys, main, *arguments):
    """Run a command in a pipe and on a terminal; return its status and its output in the pipe."""
    code = main([os.fspath(argument) for argument in arguments])
    said = capsys.readouterr()
    check(said.out + said.err)
    screen, before = Terminal(), sys.stdout
    sys.stdout = screen
    try:
        assert main([os.fspath(argument) for argument in arguments]) == code
    finally:
        sys.stdout = before
    capsys.readouterr()
    for sent in screen.getvalue().split("\x1b[")[1:]:  # only rich's own bold face
        assert sent.startswith(("0m", "1m")), sent
    return code, said.out + said.err


def strings(value, path=()):
    """Yield the place of every string and every key in plain content."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        if isinstance(key, str):
            yield (*path, key), True
        if isinstance(child, str):
            yield (*path, key), False
        yield from strings(child, (*path, key))


def spoilt(content, place, is_key, name):
    """Return a copy of content with one string replaced."""
    copy = json.loads(json.dumps(content))
    at = copy
    for key in place[:-1]:
        at = at[key]
    if is_key:
        at[name] = at.pop(place[-1])
    else:
        at[place[-1]] = name
    return copy


def test_arrays_with_hostile_names_are_shown_and_compared(capsys, here):
    arrays = {name.replace("\udcff", "").replace(".", ""): mx.array([mx.nan]) for name in NAMES}
    mx.save_safetensors("foreign.safetensors", arrays)
    held = dict.fromkeys([*arrays, NAME], "foreign.safetensors")
    (here / "x.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    (here / "packed").write_bytes(to_bytes(arrays))
    ps.checkpoint.save("own.safetensors", arrays)
    for file in ("foreign.safetensors", "packed", "own.safetensors"):
        code, said = call(capsys, inspect.main, file)
        assert code == 0
        assert "b[2J" in said
        assert r"\x9b31m\x80\x9d" in said
        assert "[red]markup[/red] :smile:" in said
    assert call(capsys, inspect.main, "x.safetensors.index.json")[0] == 1
    assert call(capsys, inspect.main, "own.safetensors", "--diff", "packed")[0] == 0
    mx.save_safetensors("other.safetensors", {name + "!": array for name, array in arrays.items()})
    assert call(capsys, inspect.main, "own.safetensors", "--diff", "other.safetensors")[0] == 1


def test_every_string_of_a_manifest_may_be_hostile(capsys, here):
    state = {"params": {"w": mx.ones(2)}, "more": [mx.zeros(1)]}
    with ps.checkpoint.Checkpointer("run") as checkpointer:
        checkpointer.save(state, step=1, metrics={"loss": 0.5}, metadata={"epoch": [3, "a"]})
    manifest = here / "run" / "step_00000001" / "manifest.json"
    content = json.loads(manifest.read_text())["content"]
    seen = 0
    for place, is_key in strings(content):
        manifest.write_text(seal(spoilt(content, place, is_key, NAME)))
        code, said = call(capsys, inspect.main, "run")
        assert code in (0, 1) or "there is no checksum" in said
        seen += r"\x1b" in said
    assert seen > 5


def test_every_string_of_a_bundle_may_be_hostile(capsys, here, monkeypatch):
    step = ps.train_step(lambda params, batch, rng: params["w"].sum(), ps.optimizers.sgd(0.1))
    state = ps.TrainState.create({"w": mx.ones(2)}, ps.optimizers.sgd(0.1))
    (here / "hostile_users.py").write_text("def step(state, batch): raise ValueError('\\x1b[31m\\u202e')")
    monkeypatch.syspath_prepend(str(here))
    path = bundle.write(here, 4, state, {"x": mx.ones(2)}, {"loss": mx.array(mx.nan)}, state, ("loss",))
    content = json.loads((path / "manifest.json").read_text())["content"]
    facts = content["metadata"]["replay"]
    assert call(capsys, replay_command.main, path, "--step", "hostile_users:step")[0] == 2
    monkeypatch.setattr(replay_command, "find_step", lambda text: (ps, step))
    for place, is_key in [*strings(facts), *strings(content["versions"])]:
        changed = json.loads(json.dumps(content))
        if place in dict(strings(facts)):
            changed["metadata"]["replay"] = spoilt(facts, place, is_key, NAME)
        else:
            changed["versions"] = spoilt(content["versions"], place, is_key, NAME)
        (path / "manifest.json").write_text(seal(changed))
        assert call(capsys, replay_command.main, path, "--step", "m:step")[0] in (0, 1, 2)
    (path / "manifest.json").write_text(seal(spoilt(content, ("tree", 0), False, NAME)))
    assert call(capsys, replay_command.main, path, "--step", "m:step")[0] == 1


def test_hostile_paths_owners_and_what_a_writer_left(capsys, here):
    run = here / NAME.replace("/", "").replace("\udcff", "")  # MLX takes no path that is not UTF-8
    with ps.checkpoint.Checkpointer(here / "run") as checkpointer:
        checkpointer.save({"w": mx.ones(2)}, step=1)
    shutil.move(here / "run", run)
    (run / ".step_00000300.\x1b[31mhost\u202e.4242.0123abcdtmp").mkdir()
    (run / ".lock").write_text(json.dumps({"pid": 1, "host": NAME}))
    code, said = call(capsys, inspect.main, run)
    assert code == 0
    assert r"pid 4242 on \x1b[31mhost\u202e" in said
    assert r"being written by pid 1 on \x1b[2J" in said
    (run / "step_00000001" / "manifest.json").write_text("{")
    assert call(capsys, inspect.main, run)[0] == 1
    assert call(capsys, inspect.main, run / "step_00000001", "--diff", run)[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_hostile_arguments(capsys, here, name):
    for main, arguments in (
        (inspect.main, [name]),
        (inspect.main, [".", name]),
        (inspect.main, [f"--{name}", "x"]),
        (inspect.main, ["x", "--step", name]),
        (inspect.main, ["x", "--diff", name]),
        (replay_command.main, [name, "--step", "os:getcwd"]),
        (replay_command.main, ["x", "--step", name]),
        (replay_command.main, ["x", "--step", f"{name}:{name}"]),
        (replay_command.main, ["x", "--step", f"os:{name}"]),
        (demo.main, [name]),
        (demo.main, ["grpo", f"--{name}"]),
        (demo.main, ["text", "--dtype", name]),
        (demo.main, ["text", "--data", name]),
        (demo.main, ["text", "--resume", "--out", name]),
    ):
        assert call(capsys, main, *arguments)[0] == 2, arguments
    assert not list(here.iterdir())


def test_hostile_arguments_of_no_command(capsys, monkeypatch):
    for arguments in ([NAME], [f"--{NAME}"], ["--version", NAME]):
        monkeypatch.setattr(sys, "argv", ["purestep", *arguments])
        __main__.main()
        said = capsys.readouterr()
        check(said.out + said.err)


def test_a_demo_shows_settings_and_text_of_others_as_text():
    screen = Terminal()
    console = EscapingConsole(file=screen, width=400, highlight=False)
    console.print(f"begun with {NAME}", style="yellow")
    console.print("a model wrote\n\x1b[31mthis\x07", markup=False)
    plain = screen.getvalue()
    assert "\x1b[31m" not in plain
    assert r"\x1b[31mthis\x07" in plain
    assert "[red]markup[/red] :smile:" in plain.replace("\n", "")


def test_pipes_and_devices_are_not_read(capsys, here):
    os.mkfifo("pipe")
    with ps.checkpoint.Checkpointer("run") as checkpointer:
        checkpointer.save({"w": mx.ones(2)}, step=1)
    os.unlink("run/.lock") if os.path.lexists("run/.lock") else None
    os.mkfifo("run/.lock")
    assert call(capsys, inspect.main, "run")[0] == 0
    assert call(capsys, inspect.main, "run", "--diff", "pipe")[0] == 2
    assert call(capsys, inspect.main, "pipe")[0] == 2
    assert call(capsys, replay_command.main, "pipe", "--step", "os:getcwd")[0] == 2
    os.unlink("run/step_00000001/manifest.json")
    os.mkfifo("run/step_00000001/manifest.json")
    assert call(capsys, inspect.main, "run")[0] == 1
    (here / "x.index.json").write_text(json.dumps({"weight_map": {"w": "pipe"}}))
    assert call(capsys, inspect.main, "x.index.json")[0] == 1


def test_a_demo_in_a_pipe_does_not_fold_its_lines():
    pipe = io.StringIO()
    console = EscapingConsole(file=pipe, highlight=False)
    table = Table(show_header=False, box=None)
    table.add_row("out", "a/" * 300)
    console.print("word " * 100 + "end")
    console.print(table)
    assert [line.rstrip() for line in pipe.getvalue().splitlines()] == [
        "word " * 100 + "end",
        f" out  {'a/' * 300}",
    ]
