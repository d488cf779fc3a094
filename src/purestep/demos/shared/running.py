"""The start, the end and the report of a run, shared by all demos."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

from rich.console import Console

import purestep as ps
from purestep._core import hardware
from purestep._loop.callbacks.display.console import EscapingConsole
from purestep.demos.shared.run_directory import RunDirectory, latest, next_free
from purestep.demos.shared.settings import agreed, damage

SettingsT = TypeVar("SettingsT", bound=Any)

INTERRUPTED = 130
_AT_ONCE = "interrupted; the last saved state is kept. To continue from it:"


class StoppedError(Exception):
    """The run was interrupted. The message says where, and whether a state is saved."""


def open_console(options: argparse.Namespace) -> Console:
    """Return the console; with --json it shows nothing."""
    return EscapingConsole(stderr=options.json, quiet=options.json, highlight=False)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text. Only a terminal wraps it, between words."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def add_shared_arguments(parser: argparse.ArgumentParser, name: str, steps: int, random: str) -> None:
    """Add the options of all demos. A setting that is not given is absent from the result."""
    unset: Any = argparse.SUPPRESS
    parser.add_argument("--steps", type=int, default=unset, help=f"number of updates (default {steps})")
    parser.add_argument("--seed", type=int, default=unset, help=f"seed of {random} (default 0)")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", default=unset, help="do not compile the step"
    )
    parser.add_argument("--out", metavar="DIR", help=f"directory of the run's files (default runs/{name})")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, or the last run")
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON")


def settled(
    options: argparse.Namespace,
    name: str,
    defaults: SettingsT,
    fault: Callable[[SettingsT], str | None],
) -> tuple[SettingsT, RunDirectory, dict[str, Any] | None]:
    """Return the settings of a run, its directory and, for a resumed run, the facts it began with.

    Nothing is written.

    Args:
        options: the parsed arguments.
        name: the name of the demo.
        defaults: a dataclass.
        fault: returns the first error in the settings, or `None`.

    Raises:
        ValueError: if a setting is out of range, the run to resume does not exist, an earlier version of
            purestep made it, or the settings differ from those of the run.
    """
    kind = type(defaults)
    given = {key: value for key, value in vars(options).items() if key in kind.__dataclass_fields__}
    settings = kind(**{**vars(defaults), **given})
    wrong = fault(settings)
    if wrong:
        raise ValueError(f"demo: {wrong}")
    if not options.resume:
        return settings, RunDirectory(options.out or next_free(f"runs/{name}")), None
    directory = RunDirectory(options.out or latest(f"runs/{name}"))
    facts = directory.facts()
    wrong = damage(facts, name, kind)
    settings = settings if wrong else agreed(facts, name, kind, given, str(directory.path))
    wrong = wrong or fault(settings)
    if wrong:
        raise ValueError(f"demo: {directory.run} is damaged: {wrong}")
    directory.check_layout()
    return settings, directory, facts


def computer() -> dict[str, str]:
    """Return the libraries and the device, which determine the last bits of a result with the settings."""
    return {"mlx": version("mlx"), "device": hardware.device_name(), "blas": hardware.blas()}


def compare_computers(facts: Mapping[str, Any], console: Console) -> None:
    """Print a warning if the libraries or the device differ from those the run began with."""
    begun, now = facts["computed_by"], computer()
    if begun != now:
        was, is_now = (", ".join(f"{key} {value}" for key, value in each.items()) for each in (begun, now))
        say(console, f"begun with {was}; resumed with {is_now}: the bits may differ", "yellow")


def ended(
    work: Callable[[], dict[str, Any]], name: str, directory: RunDirectory, console: Console, as_json: bool
) -> dict[str, Any] | int:
    """Run the work; return its result, or the exit status if the run did not complete."""
    with ps.checkpoint.signals() as asked:  # `fit` sees a signal that arrives before it begins
        try:
            return work()
        except StoppedError as stopped:
            said = f"interrupted {stopped}. To continue:"
        except KeyboardInterrupt:
            said = _AT_ONCE
        except FloatingPointError as error:
            say(console, f"stopped: {error}", "red")
            if as_json:
                print(f"demo: {error}", file=sys.stderr)
            return 1
        except RuntimeError:
            # A terminal sends Ctrl-C to the C++ compiler that MLX runs, too; MLX then misses a kernel.
            if not asked.received:
                raise
            said = _AT_ONCE
    say(console, said)
    command = f"  python -m purestep demo {name} --resume --out {shlex.quote(str(directory.path))}"
    console.print(command, soft_wrap=True)
    return INTERRUPTED


def report(result: Mapping[str, Any], console: Console, as_json: bool) -> None:
    """Print the figures of a run."""
    if as_json:
        print(json.dumps(result))
    else:
        say(console, "\n".join(["", *table(result)]))


def table(result: Mapping[str, Any]) -> list[str]:
    """Return one line per figure.

    >>> table({"loss": 1.23456, "steps": 600, "losses": [1.0, 2.5], "seconds": 4.5})
    ['loss     1.2346', 'steps    600', 'losses   1.0000, 2.5000', 'seconds  4.5']
    """
    names = [name.replace("_", " ") for name in result]
    width = max(map(len, names), default=0)
    return [
        f"{name:<{width}}  {str(value) if name == 'seconds' else _number(value)}"
        for name, value in zip(names, result.values(), strict=True)
    ]


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
