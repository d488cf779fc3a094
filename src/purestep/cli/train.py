"""`python -m purestep train CONFIG.toml [--name value ...]`."""

import contextlib
import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import purestep as ps
from purestep._loop.config.kinds import choices, optional
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, INTERRUPTED, Parser, command
from purestep.cli.demo import with_openblas
from purestep.cli.training import loading, settings
from purestep.cli.training.recording import METRICS, SAMPLES, Recorder
from purestep.cli.training.session import Session, figures, opened, trained
from purestep.cli.training.settings import STORED, TrainConfig

_DESCRIPTION = """Train a model on a text, JSONL or token file. CONFIG.toml holds settings by name;
--name value sets one more, or another value. Paths are relative to the current directory."""

_EPILOG = f"""--resume continues the run in --out, bit for bit. --json prints only the figures, as JSON. The
sizes of the model are in the table [sizes], or --sizes.width 96. A model module:function is a function
build(config, data) that returns (loss_fn, params) or (loss_fn, params, apply).

Exit status: 0 the run is complete; 1 training stopped because a value was not finite, or the output cannot be
written; 2 the settings are wrong, the model failed, or a file cannot be read or written. {ENDS}"""


@command("train")
def main(arguments: Sequence[str]) -> int:
    """Train one model."""
    if {"-h", "--help"} & {*arguments}:
        _help()
        return 0
    caught = (ValueError, TypeError, OSError)
    try:
        values, switches = settings.read_arguments(arguments)
    except caught as error:
        output.fail("train", error)
        return 2
    showing = None if switches["json"] else _need_rich()
    if showing is None and not switches["json"]:
        return 2
    with_openblas()
    # What the user's module prints must not mix with the JSON.
    with contextlib.redirect_stdout(sys.stderr) if switches["json"] else contextlib.nullcontext():
        try:
            session = opened(values, resume=switches["resume"])
        except caught as error:
            output.fail("train", error)
            return 2
        result = _train(session, showing)
    if isinstance(result, int):
        return result
    if switches["json"]:
        output.print_json(result)
    return _status(result["reason"])


def _train(session: Session, showing: Any) -> dict[str, Any] | int:
    """Train and show the run; return its figures, or an exit status."""
    recorder = Recorder(session.directory)
    callbacks: list[Any] = [recorder]
    screen = None if showing is None else showing.console()
    if showing is not None:
        config, data = session.settings.config, session.data
        showing.say(
            screen,
            f"{data.train_tokens:,} tokens to learn, {data.validation_tokens:,} to predict, "
            f"{data.vocabulary:,} different; {ps.tree.size(session.model.params):,} parameters; "
            f"files in {session.directory}/",
        )
        for note in session.notes:
            showing.say(screen, note)
        shown = showing.Shown(screen, config.eval_interval, config.batch_size * session.settings.task.context)
        callbacks.append(shown)
    try:
        result = trained(session, callbacks)
    except Exception as error:
        own = ":" in session.settings.task.model
        if not own and not isinstance(error, (ValueError, OSError, ps.checkpoint.LockedError)):
            raise
        _fail(session, error, own=own)
        return 2
    finally:
        if showing is not None:
            callbacks[-1].close()
    found = figures(session, result)
    if showing is not None:
        showing.report(screen, {name: value for name, value in found.items() if value is not None})
        if recorder.sample is not None:
            showing.say(screen, f"\nwritten by the model:\n{recorder.sample}")
        there = ", ".join(name for name in (STORED, METRICS, SAMPLES) if (session.directory / name).exists())
        showing.say(screen, f"\n{there} and checkpoints are in {session.directory}/")
    if recorder.sample is not None:
        found["sample"] = recorder.sample
    if result.reason == "signal":
        where = f"after step {result.steps}; the state is saved" if result.steps else "before the first step"
        output.fail("train", f"interrupted {where}. To continue: {_again(session)}")
    elif _status(result.reason):
        output.fail("train", f"stopped: {result.reason}; the checkpoints before are kept")
    return found


def _fail(session: Session, error: Exception, *, own: bool) -> None:
    """Print one line on an error of the run, and how to continue if steps were made."""
    said = output.worded(error)
    if own and not isinstance(error, OSError):
        said = f"{session.settings.task.model} failed ({loading.named(error)})"
    result: Any = getattr(error, "result", None)
    if result is not None and result.steps:
        said += f"; it was after step {result.steps}. To continue: {_again(session)}"
    output.fail("train", said)


def _again(session: Session) -> str:
    return f"python -m purestep train --resume --out {shlex.quote(os.fspath(session.directory))}"


def _status(reason: str) -> int:
    return {"steps": 0, "signal": INTERRUPTED}.get(reason, 1)


def _need_rich() -> Any:
    try:
        return importlib.import_module("purestep.cli.training.showing")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        output.fail("train", f"{error.name} is not installed; pip install 'purestep[cli]', or use --json")
        return None


def _help() -> None:
    parser = Parser(
        "train",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="python -m purestep train CONFIG.toml [options]",
    )
    parser.add_argument("config", metavar="CONFIG.toml", nargs="?", help="settings by name")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--json", action="store_true", help="print only the figures, as JSON")
    for title, cls in (("the task", settings.Task), ("hyperparameters", TrainConfig)):
        group = parser.add_argument_group(title)
        texts = _texts(cls)
        for name, kind in settings.types_of(cls).items():
            default = cls.__dataclass_fields__[name].default
            said = f"{texts.get(name, '')} ({_default(default)})".replace("%", "%%").replace("`", "")
            group.add_argument(f"--{name.replace('_', '-')}", metavar=_metavar(kind), help=said.strip())
    parser.print_help()


def _texts(cls: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each field."""
    found, names = {}, []
    for line in inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].split("\n"):
        if line.startswith("    ") and line[4:5].isalpha():
            head, _, text = line.strip().partition(": ")
            names = head.split(", ")
            found |= dict.fromkeys(names, text)
        elif line.startswith("     "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return {name: text.rstrip(".") for name, text in found.items()}


def _metavar(kind: Any) -> str:
    kind, _ = optional(kind)
    names = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
    return "|".join(choices(kind)) or names[kind]


def _default(value: Any) -> str:
    return "no default" if value in (None, "") else f"default {str(value).lower()}"
