"""The streams, the parser and the exit statuses that all commands share."""

import argparse
import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from purestep._core.collective import launched
from purestep._core.escaping import printable
from purestep.cli.core import output
from purestep.cli.core.streams import OutputError, Stream

DONE, OUTPUT_FAILED, BUG, INTERRUPTED, PIPE_CLOSED = 0, 1, 70, 130, 141

_Main = Callable[[Sequence[str]], int]
ENDS = """Every command: 130 interrupted; 141 the reader closed the pipe; 70 a bug in purestep."""


def of_several(name: str) -> bool:
    """Return whether this process was launched as one of several, and print that this is refused."""
    # MLX looks for other processes only if a launcher has set these.
    if not {"MLX_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"} & {*os.environ}:
        return False
    size = launched().size()
    if size > 1:
        rule = "start it without mlx.launch; to train in several, call ps.fit in a program of your own"
        output.fail(name, f"the command trains in one process, got {size}: {rule}")
    return size > 1


class Parser(argparse.ArgumentParser):
    """A parser that wraps each paragraph of its help and escapes arguments in its errors."""

    def __init__(self, command: str, **options: Any):
        super().__init__(
            prog=f"python -m purestep {command}".rstrip(),
            allow_abbrev=False,
            formatter_class=_Paragraphs,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error; exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


class _Paragraphs(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = re.split(r"\n\s*\n", text.strip())
        return "\n\n".join(super(_Paragraphs, self)._fill_text(part, width, indent) for part in paragraphs)


def command(name: str) -> Callable[[_Main], _Main]:
    """Return a decorator for a command's main function.

    While the command runs, `sys.stdout` and `sys.stderr` escape control characters, and a warning is one
    line. The command always returns a status: also if the user interrupts it, if the output cannot be
    written, if the parser exits, and if an unexpected error is raised.
    """

    def decorate(main: _Main) -> _Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str]) -> int:
            before = sys.stdout, sys.stderr
            errors: Any = Stream(before[1], needed=False)
            answers: Any = Stream(before[0], needed=True)
            sys.stdout, sys.stderr = answers, errors
            try:
                if before[0] is None:
                    output.fail(name, "standard output is closed: the answer cannot be written")
                    return OUTPUT_FAILED
                with warnings.catch_warnings():
                    warnings.showwarning = functools.partial(_warn, name)
                    code = _ended(name, main, arguments)
                return code if code == PIPE_CLOSED else _flushed(name, answers, code)
            finally:
                errors.flush()
                sys.stdout, sys.stderr = before

        return run

    return decorate


def _ended(name: str, main: _Main, arguments: Sequence[str]) -> int:
    try:
        return main(arguments)
    except OutputError as error:
        return _output_failed(name, error)
    except KeyboardInterrupt:
        output.interrupted(name, "interrupted")
        return INTERRUPTED
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or DONE
        output.fail(name, str(end.code))
        return OUTPUT_FAILED
    except Exception as error:
        for line in traceback.format_exc().rstrip("\n").split("\n"):
            print(printable(line), file=sys.stderr)
        output.fail(name, f"{type(error).__name__}: this is a bug in purestep; please report the lines above")
        return BUG


def _flushed(name: str, answers: Stream, code: int) -> int:
    try:
        answers.flush()
    except OutputError as error:
        return _output_failed(name, error)
    return code


def _output_failed(name: str, error: OutputError) -> int:
    if error.closed:
        return PIPE_CLOSED  # the status of a program that SIGPIPE ends
    output.fail(name, f"standard output cannot be written: {error}")
    return OUTPUT_FAILED


def _warn(name: str, message: Warning | str, *context: Any) -> None:
    output.fail(name, f"warning: {message}")
