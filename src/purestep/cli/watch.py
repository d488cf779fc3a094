"""`python -m purestep watch RUN`: a run as it goes on."""

import importlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purestep._core import checks
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.plotting.reading import RunFiles, metrics_of
from purestep.cli.plotting.summary import summary
from purestep.cli.watching.following import Change, Follower

CALLER = "watch"
_FIRST = 10  # rows that a pipe gets of what there was before
_DESCRIPTION = """Follow a run that is being written: a screen of its curves, or in a pipe a line for each
row. RUN is the directory of a run, or a file of JSON lines that callbacks.jsonl wrote; it may not exist yet.
The run may end, be resumed or begin again."""
_EPILOG = f"""The command ends when the run has made the max_steps of its config.toml, otherwise at Ctrl-C.

Exit status: 0 the run made all its steps, or --once; 1 standard output cannot be written; 2 the arguments are
wrong, or a file cannot be read. {ENDS}"""


@command(CALLER)
def main(arguments: Sequence[str]) -> int:
    """Follow one run."""
    parser = Parser(CALLER, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("run", metavar="RUN", type=Path, help="a directory or a file")
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="how often to look (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="show the run as it is now, and end")
    parser.add_argument("--json", action="store_true", help="print the run as it is now, only as JSON")
    options = parser.parse_args(arguments)
    showing = None if options.json else _need_rich()
    if showing is None and not options.json:
        return 2
    follower: Follower | None = None
    try:
        checks.number(CALLER, "--every", options.every, least=0.01, most=86400)
        if options.once or options.json:
            metrics_of(CALLER, options.run)
        follower = Follower(CALLER, options.run)
        if showing is None:
            follower.poll()
            output.print_json(_answer(follower))
        elif sys.stdout.isatty():
            _draw(follower, showing, options)
        else:
            _print(follower, showing, options)
    except (OSError, ValueError) as error:
        output.fail(CALLER, error)
        return 2
    finally:
        if follower is not None:
            follower.close()
    return 0


def total_of(run: RunFiles) -> int | None:
    """Return the number of steps that the settings of a run ask for, or `None`."""
    total = run.config.get("max_steps")
    return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else None


def finished(run: RunFiles) -> bool:
    """Tell whether a run has made all its steps."""
    total = total_of(run)
    return total is not None and bool(run.rows.rows) and run.rows.rows[-1]["step"] >= total


def _draw(follower: Follower, showing: Any, options: Any) -> None:
    """Draw the run until it ends."""
    screen = showing.Screen()
    try:
        while True:
            began = time.monotonic()
            follower.poll()
            run = follower.run()
            done = finished(run)
            screen.draw(run, total_of(run), None if done else follower.age())
            if options.once or done:
                return
            # A long run takes time to draw: at most a fifth of the time goes into it.
            time.sleep(max(options.every, 4 * (time.monotonic() - began)))
    finally:
        screen.close()


def _print(follower: Follower, showing: Any, options: Any) -> None:
    """Print each row until the run ends; of those that were there before, the last ones."""
    change, first = follower.poll(), True
    while True:
        for line in _lines(follower, showing, change, first):
            print(line)
        sys.stdout.flush()
        if options.once or finished(follower.run()):
            return
        first = first and not follower.rows.rows
        time.sleep(options.every)
        change = follower.poll()


def _lines(follower: Follower, showing: Any, change: Change, first: bool) -> list[str]:
    rows = follower.rows.rows
    if first:
        return showing.recent(rows, _FIRST)
    if change.again:
        last = f", its last row is of step {int(rows[-1]['step'])}" if rows else ""
        return [f"the file was written anew{last}"]
    wanted = {*change.steps}
    return [showing.line_of(row) for row in rows[-len(wanted) or len(rows) :] if row["step"] in wanted]


def _answer(follower: Follower) -> dict[str, Any]:
    run, age = follower.run(), follower.age()
    [found] = summary([run])["runs"]
    return {
        **found,
        "step": int(run.rows.rows[-1]["step"]) if run.rows.rows else None,
        "max_steps": total_of(run),
        "finished": finished(run),
        "age_seconds": None if age is None or not math.isfinite(age) else round(age, 1),
    }


def _need_rich() -> Any:
    try:
        return importlib.import_module("purestep.cli.watching.showing")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("purestep"):
            raise
        output.fail(CALLER, f"{error.name} is not installed; pip install 'purestep[cli]', or use --json")
        return None
