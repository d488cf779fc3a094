"""`python -m purestep sweep CONFIG.toml --set name=value,value ...`."""

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import purestep as ps
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.demo import with_openblas
from purestep.cli.plotting import page
from purestep.cli.plotting.charts import charts_of
from purestep.cli.plotting.reading import read_runs
from purestep.cli.sweeping import grid, together
from purestep.cli.sweeping.grid import CALLER, OUT, Planned
from purestep.cli.training import loading, settings
from purestep.cli.training.session import Session, figures, opened, store, trained
from purestep.hardware import configure_cuda

_MEMBERS, _PICTURED = 16, 26
PAGE = "sweep.html"
_DESCRIPTION = """Train a model once for every combination of some settings. CONFIG.toml and --name value are
as in `train`. Runs that differ only in learning_rate, weight_decay and max_grad_norm train as one population,
which takes less time; others train one after another."""
_EPILOG = f"""Each run has a directory NAME=VALUE in --out, with config.toml, metrics.jsonl and its last
state; `python -m purestep plot OUT/*` compares them. {PAGE} in --out shows the curves. A run whose loss is
not finite does not end the others. Samples are written only with --sample-tokens, by runs of their own.

Exit status: 0 the sweep is complete; 1 no run has a finite validation loss, or the output cannot be written;
2 the settings are wrong, the model failed, or a file cannot be read or written. {ENDS}"""


@command(CALLER)
def main(arguments: Sequence[str]) -> int:
    """Train every run of a grid."""
    if {"-h", "--help"} & {*arguments}:
        _help()
        return 0
    caught = (ValueError, TypeError, OSError)
    try:
        options, rest = _options(list(arguments))
        texts, rest = grid.split(rest)
        values, switches = settings.read_arguments(rest)
        if switches["resume"] or switches["profile"]:
            raise ValueError(f"{CALLER}: --resume and --profile are options of train, not of a sweep")
        runs = grid.planned(values, grid.swept(texts))
    except caught as error:
        _fail(error)
        return 2
    tables = None if switches["json"] else output.need_tables(CALLER)
    if tables is None and not switches["json"]:
        return 2
    with_openblas()
    with contextlib.suppress(RuntimeError):  # a program that computed before it called this function
        configure_cuda()
    say = tables.say if tables is not None else lambda text: print(text, file=sys.stderr)
    out = Path(values.get("out") or OUT)
    with contextlib.redirect_stdout(sys.stderr) if switches["json"] else contextlib.nullcontext():
        try:
            found = _trained(runs, options["members"], say)
            picture = _picture(out, runs, found)
        except caught as error:
            _fail(error)
            return 2
    rows = sorted(zip(runs, found, strict=True), key=lambda row: _rank(row[1]))
    if tables is None:
        output.print_json([{"settings": run.swept, **each} for run, each in rows])
    else:
        _show(tables, rows)
        say(f"the runs are in {out}/; {picture} shows their curves")
    return 0 if math.isfinite(_rank(rows[0][1])) else 1


def _trained(runs: Sequence[Planned], members: int, say: Any) -> list[dict[str, Any]]:
    """Train the runs in groups; return the figures of each, in the order of the runs."""
    groups = grid.grouped(runs, members)
    found: dict[str, dict[str, Any]] = {}
    for number, group in enumerate(groups, 1):
        part = f"part {number} of {len(groups)}: " if len(groups) > 1 else ""
        how = output.counted(len(group), "run") + (" as one population" if len(group) > 1 else "")
        say(f"{part}{how}, {group[0].name}{' ...' if len(group) > 1 else ''}")
        first = opened(group[0].values, resume=False)
        try:
            results = (
                together.trained(group, _sessions(first, group), say) if len(group) > 1 else [_alone(first)]
            )
        except (OSError, MemoryError):
            raise
        except Exception as error:
            said = _said(first, error)
            if said is None:
                raise
            raise ValueError(f"{CALLER}: {group[0].name}: {said}") from error
        found |= {run.name: each for run, each in zip(group, results, strict=True)}
    return [found[run.name] for run in runs]


def _sessions(first: Session, group: Sequence[Planned]) -> list[Session]:
    """Return a session for each run of a group, with a directory of its own; they share the data."""
    sessions = [first]
    for run in group[1:]:
        session = first._replace(settings=run.settings, directory=Path(run.values["out"]))
        session.directory.mkdir(parents=True)
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


def _alone(session: Session) -> dict[str, Any]:
    outcome = trained(session, [ps.callbacks.jsonl(session.directory / together.METRICS)])
    if outcome.result.reason == "signal":
        raise KeyboardInterrupt
    ps.checkpoint.save(session.directory / together.STATE, outcome.result.state)
    names = "loss validation_loss best_validation_loss best_step steps reason seconds out".split()
    all_figures = figures(session, outcome)
    return {name: all_figures[name] for name in names}


def _rank(found: dict[str, Any]) -> float:
    """Return the best validation loss; what is not finite ranks last."""
    value = found["best_validation_loss"]
    return value if value is not None and math.isfinite(value) else math.inf


def _picture(out: Path, runs: Sequence[Planned], found: Sequence[dict[str, Any]]) -> Path:
    """Write the curves of the best runs as a page."""
    order = sorted(range(len(runs)), key=lambda index: _rank(found[index]))[:_PICTURED]
    read = read_runs(CALLER, [Path(runs[index].values["out"]) for index in sorted(order)])
    page.write(out / PAGE, charts_of(read), read)
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


def _options(arguments: list[str]) -> tuple[dict[str, int], list[str]]:
    """Return the options of the sweep itself, and the other arguments."""
    parser = Parser(CALLER, add_help=False, usage="python -m purestep sweep CONFIG.toml --set name=values")
    parser.add_argument("--members", type=int, default=_MEMBERS)
    found, rest = parser.parse_known_args(arguments)
    if found.members < 1:
        raise ValueError(f"{CALLER}: members must be at least 1, got {found.members}")
    return {"members": found.members}, rest


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
    parser.add_argument("--json", action="store_true", help="print only the figures, as JSON")
    parser.add_argument("--NAME", metavar="VALUE", help="any other option of train")
    parser.print_help()
