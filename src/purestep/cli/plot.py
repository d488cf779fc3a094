"""`python -m purestep plot RUN...`: the curves of runs, in the terminal and as files."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purestep._core import checks
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.plotting import page, summary
from purestep.cli.plotting.charts import Charts, charts_of
from purestep.cli.plotting.reading import RunFiles, read_runs

CALLER = "plot"
_KINDS = (".png", ".svg", ".html")
_MOST_RUNS = 26
_DESCRIPTION = """Draw the curves of runs: loss, learning rate, gradient norm, speed, memory and every other
figure, and heat maps of figures by layer. RUN is the directory of a run, or a file of JSON lines that
callbacks.jsonl wrote. Runs are told apart by the settings in which their config.toml differ."""
_EPILOG = f"""--out FILE.png and FILE.svg write a picture and need matplotlib. --out FILE.html writes one page
that works without a network. --out may be given several times.

Exit status: 0 done; 1 standard output cannot be written; 2 the arguments are wrong, or a file cannot be read
or written. {ENDS}"""


@command(CALLER)
def main(arguments: Sequence[str]) -> int:
    """Show and draw runs."""
    parser = Parser(CALLER, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a directory or a file")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, action="append", default=[], help="a .png, .svg or .html to write"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args(arguments)
    tables = None if options.json else output.need_tables(CALLER)
    drawing = _need_matplotlib(options.out)
    if (tables is None and not options.json) or (drawing is None and _pictures(options.out)):
        return 2
    try:
        _check(options.runs, options.out)
        runs = read_runs(CALLER, options.runs)
        if not any(run.rows.rows for run in runs):
            raise checks.error(CALLER, f"{runs[0].path} must have rows, got none")
        charts = charts_of(runs)
        for path in options.out:
            _write(path, charts, runs, drawing)
    except (OSError, ValueError) as error:
        output.fail(CALLER, error)
        return 2
    if tables is None:
        output.print_json({**summary.summary(runs), "files": [str(path) for path in options.out]})
    else:
        summary.show(tables, charts)
        tables.say(*(f"written: {path}" for path in options.out))
    return 0


def _check(runs: Sequence[Path], out: Sequence[Path]) -> None:
    if len(runs) > _MOST_RUNS:
        raise checks.error(CALLER, f"at most {_MOST_RUNS} runs can be told apart, got {len(runs)}")
    for path in out:
        if path.suffix.lower() not in _KINDS:
            raise checks.error(CALLER, f"--out must end with .png, .svg or .html, got {str(path)!r}")
        if path.is_dir():
            raise checks.error(CALLER, f"--out must be a file, got the directory {path}")


def _write(path: Path, charts: Charts, runs: Sequence[RunFiles], drawing: Any) -> None:
    if path.suffix.lower() == ".html":
        page.write(path, charts, runs)
    else:
        drawing.draw(path, charts)


def _pictures(out: Sequence[Path]) -> bool:
    return any(path.suffix.lower() in (".png", ".svg") for path in out)


def _need_matplotlib(out: Sequence[Path]) -> Any:
    """Return the module that draws pictures if one is asked for; without matplotlib print an error."""
    if not _pictures(out):
        return None
    try:
        return importlib.import_module("purestep.cli.plotting.drawing")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        said = f"{error.name} is not installed; pip install 'purestep[demo]', or write a .html"
        output.fail(CALLER, said)
        return None
