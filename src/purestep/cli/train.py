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
from purestep._checkpoint.disk import atomic
from purestep._loop.config.kinds import choices, members, optional
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, INTERRUPTED, Parser, command, of_several
from purestep.cli.demo import with_openblas
from purestep.cli.training import loading, settings
from purestep.cli.training.session import CHECKPOINTS, Outcome, Session, figures, opened, trained
from purestep.cli.training.settings import STORED, TrainConfig
from purestep.hardware import configure_cuda

METRICS, PROFILE = "metrics.jsonl", "profile.json"
_NO_KERNEL = "MLX cannot compile a kernel ({}). It writes to TMPDIR; --no-compile-step compiles none"
_OF_MLX = {
    "compile": _NO_KERNEL,
    "shared library": _NO_KERNEL,
    "temp_directory": _NO_KERNEL,
    "allocate": "there is too little memory ({}). A smaller --batch-size or --context needs less",
}
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
    if of_several("train"):
        return 2
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
    with contextlib.suppress(RuntimeError):  # a program that computed before it called this function
        configure_cuda()
    # What the user's module prints must not mix with the JSON.
    with contextlib.redirect_stdout(sys.stderr) if switches["json"] else contextlib.nullcontext():
        try:
            session = opened(values, resume=switches["resume"])
        except caught as error:
            output.fail("train", error)
            return 2
        except KeyboardInterrupt:
            out = values.get("out", settings.Task.out)
            kept = f"To continue: {_again(out)}" if switches["resume"] else "Nothing was written"
            output.interrupted("train", f"interrupted before the first step. {kept}")
            return INTERRUPTED
        result = _train(session, showing, ps.profile() if switches["profile"] else None)
    if isinstance(result, int):
        return result
    if switches["json"]:
        output.print_json(result)
    return _status(result["reason"])


def _train(session: Session, showing: Any, profile: Any) -> dict[str, Any] | int:
    """Train and show the run; return its figures, or an exit status."""
    callbacks: list[Any] = [ps.callbacks.jsonl(session.directory / METRICS)]
    screen: Any = None if showing is None else showing.Screen()
    if showing is not None:
        data = session.data
        lines = [
            f"{data.train_tokens:,} tokens to learn, {data.validation_tokens:,} to predict, "
            f"{data.vocabulary:,} different; {ps.tree.size(session.model.params):,} parameters; "
            f"files in {session.directory}/",
            *session.notes,
        ]
        showing.say("\n".join(lines))
        callbacks.append(ps.callbacks.progress("train", console=screen.console))
    try:
        with contextlib.nullcontext() if profile is None else profile:
            outcome = _shown(session, callbacks)
        if profile is not None:
            atomic.write_text(session.directory / PROFILE, profile.to_json())
    except (KeyboardInterrupt, SystemExit) as stop:  # the second Ctrl-C, or the second SIGTERM
        output.interrupted("train", f"interrupted; {_to_continue(session)}")
        return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else INTERRUPTED
    except Exception as error:
        said = _said(session, error)
        if said is None:
            raise
        _fail(session, error, said)
        return 2
    reason, steps = outcome.result.reason, outcome.result.steps
    if reason == "signal" and not steps:
        output.interrupted("train", f"interrupted; {_to_continue(session)}")
        return INTERRUPTED
    found = figures(session, outcome)
    lost = getattr(screen, "error", None)  # of standard output
    if showing is not None and lost is None:
        shown = {name: value for name, value in found.items() if value is not None}
        there = ", ".join(name for name in (STORED, METRICS, PROFILE) if (session.directory / name).exists())
        showing.say("\n".join(["", *showing.table(shown), ""]))
        if profile is not None:
            showing.say(f"{profile}\n")
        showing.say(f"{there} and checkpoints are in {session.directory}/")
    if outcome.sample is not None:
        found["sample"] = outcome.sample
    if reason == "signal":
        output.interrupted("train", f"interrupted after step {steps}; {_to_continue(session)}")
    elif _status(reason):
        output.fail("train", f"stopped: {reason}; the checkpoints before are kept")
    if lost is not None:
        raise lost
    return found


def _shown(session: Session, callbacks: Sequence[Any]) -> Outcome:
    """Train; end the live line also after an error, which shows the cursor again."""
    try:
        with ps.checkpoint.signals():  # `fit` sees a signal that arrives before it begins
            return trained(session, callbacks)
    finally:
        for callback in callbacks:
            callback.on_train_end(None)


def _to_continue(session: Session) -> str:
    """Return what is saved, and the command that continues from there."""
    newest = ps.checkpoint.Checkpointer(session.directory / CHECKPOINTS).latest()
    saved = "no checkpoint is saved, so the run begins again"
    if newest is not None:
        saved = f"the state after step {newest.step} is saved"
    return f"{saved}. To continue: {_again(session.directory)}"


def _said(session: Session, error: Exception) -> str | None:
    """Return an error of the run in one line, or `None` for a bug."""
    if isinstance(error, (OSError, ps.checkpoint.LockedError)) or str(error).startswith("train: "):
        return output.worded(error)
    if type(error) is RuntimeError:
        for sign, said in _OF_MLX.items():
            if sign in str(error):
                return said.format(loading.shortened(str(error)))
    if ":" in session.settings.task.model:
        return f"{session.settings.task.model} failed ({loading.named(error)})"
    return output.worded(error) if isinstance(error, ValueError) else None


def _fail(session: Session, error: Exception, said: str) -> None:
    """Print one line on an error of the run, and how to continue if steps were made."""
    result: Any = getattr(error, "result", None)
    if result is not None and result.steps:
        said += f"; it was after step {result.steps}; {_to_continue(session)}"
    output.fail("train", said)


def _again(directory: str | os.PathLike[str]) -> str:
    return f"python -m purestep train --resume --out {shlex.quote(os.fspath(directory))}"


def _status(reason: str) -> int:
    return {"steps": 0, "signal": INTERRUPTED}.get(reason, 1)


def _need_rich() -> Any:
    try:
        return importlib.import_module("purestep.cli.training.screen")
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
    parser.add_argument("--profile", action="store_true", help="show where the time of ten steps goes")
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
    if members(kind):
        return f"{'|'.join(members(kind))},..."
    return "|".join(choices(kind)) or names[kind]


def _default(value: Any) -> str:
    if value == ():
        return "default none"
    return "no default" if value in (None, "") else f"default {str(value).lower()}"
