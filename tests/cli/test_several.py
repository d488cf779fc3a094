"""Commands that train are refused in several processes, before anything is read or written."""

from types import SimpleNamespace

import pytest

from purestep.cli import sweep, train
from purestep.cli.core import commands


@pytest.mark.parametrize("command", [train, sweep])
def test_a_command_that_trains_is_refused_in_several_processes(monkeypatch, capsys, command):
    monkeypatch.setattr(commands, "launched", lambda: SimpleNamespace(size=lambda: 2))
    monkeypatch.setenv("MLX_RANK", "1")
    name = command.__name__.rpartition(".")[2]
    assert command.main(["--no-such-option"]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: the command trains in one process, got 2: ")
