"""`python -m purestep sweep CONFIG.toml --set name=value,value ...`."""

import contextlib
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import purestep as ps
from purestep._checkpoint.run.signals import Signals
from purestep._core import checks
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, INTERRUPTED, Parser, command
from purestep.cli.demo import with_openblas
from purestep.cli.plotting import page
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import read_runs
from purestep.cli.sweeping import grid, stored, together
from purestep.cli.sweeping.grid import CALLER, OUT, Planned
from purestep.cli.sweeping.stored import METRICS, STATE, Plan
from purestep.cli.training import loading, models, settings
from purestep.cli.training.session import Session, figures, opened, store, trained
from purestep.cli.training.settings import STORED
from purestep.hardware import configure_cuda

_MEMBERS, _PICTURED = 16, 26  # a picture of more curves cannot be read
PAGE = "sweep.html"
_DESCRIPTION = """Train a model once for every combination of some settings. CONFIG.toml and --name value are
as in `train`. Runs that differ only in learning_rate, weight_decay and max_grad_norm train as one population,
which takes less time; others train one after another."""
_EPILOG = f"""Each run has a directory NAME=VALUE in --out, with config.toml, metrics.jsonl and its last
state; `python -m purestep plot OUT/*/` compares them. {PAGE} in --out shows the curves. A run whose loss is
not finite does not end the others. Samples are written only with --sample-tokens, by runs of their own.

Ctrl-C and SIGTERM end the sweep after the current step, with a checkpoint; a sweep that is killed has that of
the last checkpoint_interval. `python -m purestep sweep --resume --out OUT` continues it exactly, and repeats
no run that is done.

Exit status: 0 the sweep is complete; 1 no run has a finite validation loss, or the output cannot be written;
2 the settings are wrong, the model failed, or a file cannot be read or written. {ENDS}"""


@command(CALLER)
def main(arguments: Sequence[str]) -> int:
    """Train every run of a grid."""
    if {"-h", "--help"} & {*arguments}:
        _help()
        return 0
    caught = (ValueError, TypeError, OSError, ps.checkpoint.LockedError)
    try:
        out, plan, as_json, again = _planned(list(arguments))
        runs = grid.planned({**plan.values, "out": str(out)}, grid.swept(plan.texts), again=again)
        if stored.is_stored(out) and not again:
            raise checks.error(CALLER, f"{out} already holds a sweep: add --resume, or choose another --out")
    except caught as error:
        _fail(error)
        return 2
    tables = None if as_json else output.need_tables(CALLER)
    if tables is None and not as_json:
        return 2
    with_openblas()
    with contextlib.suppress(RuntimeError):  # a program that computed before it called this function
        configure_cuda()
    say = tables.say if tables is not None else lambda text: print(text, file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            with ps.checkpoint.signals() as asked:
                found = _trained(out, plan, runs, asked, say)
            done = [run for run in runs if run.name in found]
            picture = _picture(out, done, found) if done else None
        except KeyboardInterrupt:  # the second Ctrl-C
            output.interrupted(CALLER, f"interrupted. To continue: {stored.to_continue(out)}")
            return INTERRUPTED
        except caught as error:
            _fail(error)
            return 2
    rows = sorted(((run, found[run.name]) for run in done), key=lambda row: _rank(row[1]))
    if tables is not None and rows:
        _show(tables, rows)
        say(f"the runs are in {out}/; {picture} shows their curves")
    if len(done) < len(runs):
        said = f"interrupted; {len(done)} of {output.counted(len(runs), 'run')} are done"
        output.interrupted(CALLER, f"{said}. To continue: {stored.to_continue(out)}")
        return INTERRUPTED
    if as_json:
        output.print_json([{"settings": run.swept, **each} for run, each in rows])
    return 0 if math.isfinite(_rank(rows[0][1])) else 1


def _planned(arguments: list[str]) -> tuple[Path, Plan, bool, bool]:
    """Return the directory, the plan, and whether to print JSON and to continue a sweep."""
    members, rest = _members(arguments)
    texts, rest = grid.split(rest)
    values, switches = settings.read_arguments(rest)
    out = Path(values.get("out") or OUT)
    if switches["profile"]:
        raise checks.error(CALLER, "--profile is an option of train, not of a sweep")
    if not switches["resume"]:
        return out, Plan(values, texts, members or _MEMBERS), switches["json"], False
    others = [name for name, value in values.items() if name != "out" and value != {}]
    if others or texts or members:
        given = ", ".join([*others, *(["--set"] if texts else []), *(["--members"] if members else [])])
        rule = "--resume takes the settings that the sweep began with: give --out alone"
        raise checks.error(CALLER, f"{rule}, got {given}")
    return out, stored.read(out), switches["json"], True


def _trained(
    out: Path, plan: Plan, runs: Sequence[Planned], asked: Signals, say: Any
) -> dict[str, dict[str, Any]]:
    """Train the runs in groups; return the figures of each that is done, by its name."""
    for run in runs:  # before any work
        models.check_model(run.settings.task.model, run.settings.sizes)
    groups = grid.grouped(runs, plan.members)
    found: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(groups, 1):
        before = [stored.finished(run) for run in group]
        if all(before):
            found |= {run.name: each for run, each in zip(group, before, strict=True) if each is not None}
            continue
        if asked.received:
            break
        part = f"part {number} of {len(groups)}: " if len(groups) > 1 else ""
        how = output.counted(len(group), "run") + (" as one population" if len(group) > 1 else "")
        say(f"{part}{how}, {group[0].name}{' ...' if len(group) > 1 else ''}")
        first = opened(group[0].values, resume=(Path(group[0].values["out"]) / STORED).is_file())
        if not stored.is_stored(out):
            stored.store(out, plan)
        place = stored.checkpoints(out, number)
        try:
            results = (
                together.trained(group, _sessions(first, group), place, asked, say)
                if len(group) > 1
                else _alone(first)
            )
        except (OSError, MemoryError, ps.checkpoint.LockedError):
            raise
        except Exception as error:
            said = _said(first, error)
            if said is None:
                raise
            raise ValueError(f"{CALLER}: {group[0].name}: {said}") from error
        if results is None:
            break
        for run, each in zip(group, results, strict=True):
            stored.finish(Path(run.values["out"]), each)
            found[run.name] = each
        shutil.rmtree(place, ignore_errors=True)
    return found


def _sessions(first: Session, group: Sequence[Planned]) -> list[Session]:
    """Return a session for each run of a group, with a directory of its own; they share the data."""
    sessions = [first]
    for run in group[1:]:
        session = first._replace(settings=run.settings, directory=Path(run.values["out"]))
        session.directory.mkdir(parents=True, exist_ok=True)
        store(session)
        sessions.append(session)
    return sessions


def _said(session: Session, error: Exception) -> str | None:
    """Return an error of a run in one line, or `None` for a bug."""
    if isinstance(error, ValueError) and str(error).startswith("population: "):
        return f"{error}".partition("; ")[0] + "; --members 1 trains each run alone"
    if ":" in session.settings.task.model:
        return f"{session.settings.task.model} failed ({loading.named(error)})"
    return output.worded(error) if isinstance(error, ValueError) else None


def _alone(session: Session) -> list[dict[str, Any]] | None:
    """Train one run; return its figures, or `None` if a signal came before its last step."""
    outcome = trained(session, [ps.callbacks.jsonl(session.directory / METRICS)])
    if outcome.result.reason == "signal":
        return None
    ps.checkpoint.save(session.directory / STATE, outcome.result.state)
    names = "loss validation_loss best_validation_loss best_step steps reason seconds out".split()
    all_figures = figures(session, outcome)
    return [{name: all_figures[name] for name in names}]


def _rank(found: dict[str, Any]) -> float:
    """Return the best validation loss; what is not finite ranks last."""
    value = found["best_validation_loss"]
    return value if value is not None and math.isfinite(value) else math.inf


def _picture(out: Path, runs: Sequence[Planned], found: dict[str, dict[str, Any]]) -> Path:
    """Write the curves of the best runs as a page."""
    best = sorted(runs, key=lambda run: _rank(found[run.name]))[:_PICTURED]
    read = read_runs(CALLER, [Path(run.values["out"]) for run in runs if run in best])
    named = [each._replace(config={}) for each in read]  # the name of a run has the settings that differ
    page.write(out / PAGE, charts_of(named), named)
    return out / PAGE


def _show(tables: Any, rows: Sequence[tuple[Planned, dict[str, Any]]]) -> None:
    names = list(rows[0][0].swept)
    heads = ["loss", "validation", "best", "at step", "seconds"]
    columns = [(name, "right") for name in [*names, *heads]] + [("", "left")]
    cells = []
    for run, found in rows:
        numbers = [found["loss"], found["validation_loss"], found["best_validation_loss"]]
        shown = ["" if number is None else output.number(number) for number in numbers]
        cells.append(
            [
                *(str(run.swept[name]) for name in names),
                *shown,
                str(found["best_step"] or ""),
                f"{found['seconds']:.0f}",
                "" if found["reason"] == "steps" else str(found["reason"]),
            ]
        )
    tables.table(f"{output.counted(len(rows), 'run')}, the best first", columns, cells)


def _members(arguments: list[str]) -> tuple[int | None, list[str]]:
    """Return the option of the sweep itself, `None` if it is not given, and the other arguments."""
    parser = Parser(CALLER, add_help=False, usage="python -m purestep sweep CONFIG.toml --set name=values")
    parser.add_argument("--members", type=int)
    found, rest = parser.parse_known_args(arguments)
    if found.members is not None and found.members < 1:
        raise checks.error(CALLER, f"members must be at least 1, got {found.members}")
    return found.members, rest


def _fail(error: Exception) -> None:
    said = output.worded(error)
    output.fail(CALLER, said.removeprefix("train: "))


def _help() -> None:
    parser = Parser(
        CALLER,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="python -m purestep sweep CONFIG.toml --set name=value,value [--set ...] [options]",
    )
    parser.add_argument("config", metavar="CONFIG.toml", nargs="?", help="settings by name")
    parser.add_argument("--set", metavar="NAME=VALUE,VALUE", action="append", help="the values of a setting")
    parser.add_argument(
        "--members",
        metavar="N",
        help=f"the most runs of one population (default {_MEMBERS}); 1 trains each alone",
    )
    parser.add_argument("--out", metavar="TEXT", help=f"the directory of the sweep (default {OUT})")
    parser.add_argument("--resume", action="store_true", help="continue the sweep in --out")
    parser.add_argument("--json", action="store_true", help="print only the figures, as JSON")
    parser.add_argument("--NAME", metavar="VALUE", help="any other option of train")
    parser.print_help()
