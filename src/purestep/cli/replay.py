"""`python -m purestep replay BUNDLE --step module:function`."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from purestep._checkpoint.format.header import CorruptError
from purestep._core import checks
from purestep._replay.bundle import Bundle, load
from purestep._replay.explaining import Report, explain
from purestep._steps.compile import Compiled
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.demo import with_openblas

_DESCRIPTION = """Run a recorded step again, bit for bit, and name the first array that is not finite: in the
state, the batch, the loss, the gradients, the updates or the new state."""

_EPILOG = f"""module:function names a step, or a function without arguments that returns a step. The module is
imported, also from the current directory. It must contain the NamedTuple types of the bundle.

Exit status: 0 the step was reproduced bit for bit; 1 the results differ, the bundle is damaged, or the output
cannot be written; 2 the arguments are wrong, the step is of another model, or a file cannot be read.

{ENDS}"""

_DRIFT_ROWS = 12


@command("replay")
def main(arguments: Sequence[str]) -> int:
    """Replay one bundle."""
    parser = Parser("replay", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("bundle", metavar="BUNDLE", help="the directory that replay.record wrote")
    parser.add_argument("--step", required=True, metavar="module:function", help="the step that was recorded")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args(arguments)
    tables = None if options.json else output.need_tables("replay")
    if tables is None and not options.json:
        return 2
    try:
        with contextlib.redirect_stdout(sys.stderr):  # output of the user's module goes to stderr
            module, step = find_step(options.step)
            bundle = load(options.bundle, types=namedtuples(module))
            if "openblas" in bundle.device:
                with_openblas()  # a matrix product has other bits with another BLAS
            report = explain(step, bundle)
    except CorruptError as error:
        output.fail("replay", error)
        return 1
    except (ValueError, TypeError, OSError) as error:
        # Here the argument `types` of `load` is the module of --step.
        said = output.worded(error).replace("replay.load: types must", "replay: the module of --step must")
        output.fail("replay", said)
        return 2
    if options.json:
        output.print_json(_as_json(bundle, report))
    else:
        _show(tables, bundle, report)
    return 0 if report.reproduced else 1


def find_step(text: str) -> tuple[ModuleType, Any]:
    """Return the module and the step that `module:function` names.

    Raises:
        ValueError: if the name is not that of a step.
    """
    caller = "replay"
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise checks.error(caller, f"--step must be module:function, got {text!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing the user's module may raise anything
        raise checks.error(
            caller, f"--step: importing {name} failed ({type(error).__name__}: {error})"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise checks.error(caller, f"--step: {name} has no {attribute}")
        found = getattr(found, part)
    if _takes(found) == 0:
        try:
            made = found()
        except (Exception, SystemExit) as error:
            raise checks.error(
                caller, f"--step: {attribute}() failed ({type(error).__name__}: {error})"
            ) from error
        if _takes(made) != 2:
            raise checks.error(
                caller, f"--step: {attribute}() must return a step(state, batch), got {type(made).__name__}"
            )
        return module, made
    if _takes(found) != 2:
        raise checks.error(
            caller,
            f"--step: {attribute} must be a step(state, batch), or a function without arguments that returns "
            f"one, got {found!r:.200}",
        )
    return module, found


def namedtuples(module: ModuleType) -> list[type]:
    """Return the NamedTuple types among the names of a module."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    ]


def _takes(value: Any) -> int | None:
    """Return the number of required arguments, 2 for a step; `None` for anything that is not a function."""
    if isinstance(value, Compiled):
        return 2
    if not callable(value) or isinstance(value, type):
        return None
    try:
        parameters = inspect.signature(value).parameters.values()
    except (ValueError, TypeError):  # a built-in without a signature
        return None
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in by_position]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return None
    return len(needed)


def _as_json(bundle: Bundle, report: Report) -> dict[str, Any]:
    facts = ("step", "reason", "compiled", "device", "versions")
    return {
        "bundle": str(bundle.path),
        **{name: getattr(bundle, name) for name in facts},
        **report._asdict(),
    }


def _show(tables: Any, bundle: Bundle, report: Report) -> None:
    how = "compiled" if bundle.compiled else "eager"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(bundle.versions.items()))
    made = output.counted(bundle.step, "step")
    tables.say(
        f"{bundle.path.name}: after {made}, {how}, on {bundle.device}; {versions}",
        f"not finite when recorded: {', '.join(bundle.reason) or 'nothing'}",
    )
    tables.table(
        "stages of the step",
        [("stage", "left"), ("arrays", "right"), ("not finite", "right"), ("first", "left")],
        [
            (
                stage.name,
                "unknown" if stage.arrays is None else str(stage.arrays),
                str(len(stage.nonfinite)),
                _described(stage.nonfinite[0]) if stage.nonfinite else "",
            )
            for stage in report.stages
        ],
    )
    first = "everything is finite" if report.first is None else f"first: {_described(report.first)}"
    tables.say(first)
    if report.drift:
        worst = sorted(report.drift.items(), key=lambda item: -(item[1].ulps or 0))
        tables.table(
            f"compiled against eager: differences in {output.counted(len(worst), 'array')}",
            [("array", "left"), ("ulps", "right"), ("max abs", "right"), ("relative", "right")],
            [
                (
                    path,
                    "" if found.ulps is None else str(found.ulps),
                    output.number(found.max_abs),
                    output.number(found.relative),
                )
                for path, found in worst[:_DRIFT_ROWS]
            ],
        )
        if len(worst) > _DRIFT_ROWS:
            tables.say(f"and {len(worst) - _DRIFT_ROWS} more, all in --json")
    elif report.drift is not None:
        tables.say("compiled and eager agree bit for bit")
    if report.reproduced:
        tables.say("reproduced bit for bit: metrics and new state")
    else:
        shown = ", ".join(report.mismatches[:6])
        more = f" and {len(report.mismatches) - 6} more" if len(report.mismatches) > 6 else ""
        tables.say(f"not reproduced bit for bit: {shown}{more}")
    tables.say(*(f"changed since the recording: {line}" for line in report.conditions), *report.notes)


def _described(found: Any) -> str:
    kinds = [f"{count} {name}" for count, name in ((found.nan, "NaN"), (found.infinite, "infinite")) if count]
    place = f", first at {list(found.first)}" if found.first else ""
    return f"{found.path}: {' and '.join(kinds)} of {found.size}{place}"
