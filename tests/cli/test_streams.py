"""The ends of a command: a closed pipe, a full disk, a plain locale, an interrupt, no output."""

import errno
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import pytest

import purestep as ps
from purestep import __main__
from purestep.cli import inspect
from purestep.cli.core import commands, output, streams
from purestep.cli.core.streams import Stream
from purestep.cli.inspecting import answering, opening
from tests.cli.hostile import Terminal

SOURCE = {"PYTHONPATH": str(Path(ps.__file__).parents[1])}  # for other processes, the same code


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with one checkpoint, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with ps.checkpoint.Checkpointer("run") as checkpointer:
        checkpointer.save({"a_layer_with_a_long_name.weight": mx.ones(2)}, step=1)
    return tmp_path / "run"


class Failing(Terminal):
    """A stream that cannot be written. It fails at the first write or, like a pipe, at the flush."""

    encoding = "utf-8"

    def __init__(self, number, late):
        super().__init__()
        self.error, self.late = OSError(number, os.strerror(number)), late

    def isatty(self):
        return False

    def write(self, text):
        if not self.late:
            raise self.error
        return len(text)

    def flush(self):
        raise self.error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (errno.EPIPE, 141, ""),
        (errno.ENOSPC, 1, "inspect: standard output cannot be written: No space left on device\n"),
        (errno.EIO, 1, "inspect: standard output cannot be written: Input/output error\n"),
    ],
)
@pytest.mark.parametrize("arguments", [["run"], ["run", "--json"], ["--help"]])
def test_an_output_that_fails_is_told_by_the_status(
    capsys, monkeypatch, run, number, status, said, late, arguments
):
    monkeypatch.setattr(sys, "stdout", Failing(number, late))
    assert inspect.main(arguments) == status
    assert capsys.readouterr().err == said


def test_an_error_output_that_fails_is_not_missed(capsys, monkeypatch, run):
    monkeypatch.setattr(sys, "stderr", Failing(errno.ENOSPC, False))
    assert inspect.main(["nowhere"]) == 2
    assert inspect.main(["run"]) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert inspect.main(["nowhere"]) == 2
    assert inspect.main(["run"]) == 0


def test_without_an_output_nothing_is_begun(capsys, monkeypatch, run):
    monkeypatch.setattr(sys, "stdout", None)
    assert inspect.main(["run"]) == 1
    assert capsys.readouterr().err.startswith("inspect: standard output is closed")


@pytest.mark.parametrize("arguments", [["inspect", "run"], []])
@pytest.mark.parametrize("place", ["pipe", "/dev/full"])
def test_the_interpreter_adds_nothing_as_it_ends(run, arguments, place):
    if place == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif os.path.exists(place):
        writer = os.open(place, os.O_WRONLY)
    else:
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "purestep", *arguments]
    environment = {**os.environ, **SOURCE}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    name = "inspect" if arguments else "purestep"
    said = f"{name}: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == ((141, "") if place == "pipe" else (1, said))


@pytest.mark.parametrize("plain", [{"LANG": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_plain_locale_gets_ascii(run, plain):
    environment = {
        name: value for name, value in os.environ.items() if name != "LANG" and not name.startswith("LC_")
    }
    outer, inner = pty.openpty()
    code = "import sys; from purestep.cli.inspect import main; sys.exit(main(['run', '--leaves', '*']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=inner,
        stderr=inner,
        env={**environment, **SOURCE, **plain, "COLUMNS": "90"},
    ) as process:
        os.close(inner)
        said = b""
        while chunk := _read(outer):
            said += chunk
    os.close(outer)
    assert process.returncode == 0
    assert said.isascii()
    assert b"+------" in said
    assert b"verified" in said


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # a terminal without writers
        return b""


def test_locales_are_read_as_the_user_set_them():
    assert streams.plain_locale({"LANG": "C"})
    assert streams.plain_locale({"LANG": "en_US.UTF-8", "LC_ALL": "C"})
    assert not streams.plain_locale({})
    assert not streams.plain_locale({"LANG": "C", "LC_ALL": "de_DE.UTF-8"})
    assert not streams.plain_locale({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"})
    assert not streams.plain_locale({"LANG": "C", "PYTHONIOENCODING": "utf-8"})


def test_a_terminal_keeps_colours_and_a_pipe_does_not():
    screen = Terminal()
    Stream(screen, needed=True).write("\x1b[31mred\x1b[0m\r\x1b[2K\x1b[1A\x1b]0;t\x07\x1b[2J\u202e\n")
    assert screen.getvalue() == "\x1b[31mred\x1b[0m\r\x1b[2K\x1b[1A\\x1b]0;t\\x07\\x1b[2J\\u202e\n"


@pytest.mark.parametrize("command", ["inspect", "replay"])
def test_an_interrupt_is_one_line(capsys, monkeypatch, run, command):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "open_path", interrupted)
    monkeypatch.setattr("purestep.cli.replay.load", interrupted)
    monkeypatch.setattr("purestep.cli.replay.find_step", lambda text: (ps, None))
    monkeypatch.setattr(sys, "argv", ["purestep", command, "run", *(["--step=a:b"] * (command == "replay"))])
    assert __main__.main() == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{command}: interrupted\n")


def test_a_permission_that_is_missing_is_no_damage(capsys, monkeypatch, run):
    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied", "run/secret")

    for module, name in ((answering, "read_all"), (opening, "list_run"), (opening, "open_arrays")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, denied)
            assert inspect.main(["run"]) == 2
        assert capsys.readouterr().err == "inspect: Permission denied: 'run/secret'\n"


def test_warnings_are_one_line_each(capsys):
    @commands.command("here")
    def main(arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("\x1b[31mdamaged:\n  one", UserWarning, stacklevel=1)
        return 0

    assert main([]) == 0
    assert capsys.readouterr().err == "here: warning: \\x1b[31mdamaged:\\n  one\n"


def test_an_error_that_nobody_expected_is_shown_safely(capsys):
    @commands.command("here")
    def main(arguments):
        raise RuntimeError("\x1b[31mred")

    assert main([]) == 70
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "RuntimeError: \\x1b[31mred" in said
    assert said.endswith("here: RuntimeError: this is a bug in purestep; please report the lines above\n")


def test_names_are_whole_in_a_pipe_and_readable_on_narrow_terminals(capsys, monkeypatch, run):
    name = "params." + "layer_with_quite_a_name." * 8 + "weight"
    ps.checkpoint.save("long.safetensors", {name: mx.ones(2)})
    assert inspect.main(["long.safetensors"]) == 0
    said = capsys.readouterr().out
    [line] = [line for line in said.splitlines() if name in line]
    assert line.split()[1:] == ["float32", "2", "8", "B", "1.414", "verified"]
    for width in (60, 80, 100, 300):
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            patch.setattr(sys, "stdout", screen)
            assert inspect.main(["long.safetensors"]) == 0
        lines = screen.getvalue().splitlines()
        assert max(len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) for line in lines) <= width
        assert any(name[:24] in line for line in lines)
        assert width < 300 or any(name in line for line in lines)


def test_what_the_system_says_is_worded():
    assert output.worded(PermissionError(13, "Permission denied", "a\nb")) == r"Permission denied: 'a\nb'"
    assert output.worded(OSError("plain")) == "plain"
    assert output.worded(OSError(24, "inspect: x cannot be read (Too many)")).startswith("inspect: x")
