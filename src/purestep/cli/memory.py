"""`python -m purestep memory CONFIG.toml [--budget 16GB] [--name value ...]`: the memory of a run."""

import re
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._core import checks
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, INTERRUPTED, command
from purestep.cli.training import settings
from purestep.cli.training.planning import Plan, planned, smaller

CALLER = "memory"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_KINDS = {
    "parameters": "of the state",
    "optimizer": "state of the optimizer",
    "other": "rest of the state",
    "frozen": "weights that are not trained",
    "batch": "one batch",
    "gradients": "gradients, updates, and copies of parameters",
    "activations": "results that the gradient needs",
    "waiting": "read by kernels that have not run yet",
}
_HELP = f"""usage: python -m purestep memory CONFIG.toml [--budget SIZE] [--json] [--name value ...]

Predict the memory of a run of `train` on this device, before it begins. The settings are those of train;
--name value sets one more, or another value. Nothing is computed, and no memory is taken for the weights of
a named model. With --vocabulary N the data need not exist.

  --budget SIZE  such as 16GB or 12GiB; the default is MLX's memory limit
  --json         print only JSON

If the run does not fit, the table below shows what would. On a CPU predictions are within 10 % of the
measured peak; on a GPU the peak itself varies by 10 % from step to step.

Exit status: 0 the run fits; 1 it does not, or the output cannot be written; 2 the settings are wrong, or a
file cannot be read. {ENDS}"""


@command("memory")
def main(arguments: Sequence[str]) -> int:
    """Predict the memory of one run."""
    if {"-h", "--help"} & {*arguments}:
        print(_HELP)
        return 0
    caught = (ValueError, TypeError, OSError)
    try:
        budget, rest = _budget(list(arguments))
        values, switches = settings.read_arguments(rest)
    except caught as error:
        output.fail(CALLER, error)
        return 2
    tables = None if switches["json"] else output.need_tables(CALLER)
    if tables is None and not switches["json"]:
        return 2
    try:
        report = planned(values)
        fits = report.peak_in_run <= budget
        plans = [] if fits else list(smaller(values, budget))
    except caught as error:
        output.fail(CALLER, error)
        return 2
    except KeyboardInterrupt:
        output.interrupted(CALLER, "interrupted")
        return INTERRUPTED
    if switches["json"]:
        output.print_json(_answer(report, budget, plans))
    else:
        _show(tables, report, budget, plans)
    return 0 if fits else 1


def _budget(arguments: list[str]) -> tuple[int, list[str]]:
    """Return the budget in bytes, and the other arguments."""
    rest, budget = [], int(mx.get_memory_limit())
    while arguments:
        flag, equals, text = arguments.pop(0).partition("=")
        if flag != "--budget":
            rest.append(f"{flag}{equals}{text}")
            continue
        if not equals:
            if not arguments:
                raise checks.error(CALLER, "--budget needs a value, such as 16GB")
            text = arguments.pop(0)
        budget = bytes_of(text)
    return budget, rest


def bytes_of(text: str) -> int:
    """Return the bytes that a size names, such as 16GB or 12 GiB."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-zA-Z]{0,3})", text.strip())
    if found is None or found[2].lower() not in _UNITS or not float(found[1]):
        raise checks.error(CALLER, f"--budget must be a size such as 16GB or 12GiB, got {text!r:.80}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _answer(report: ps.memory.MemoryReport, budget: int, plans: list[Plan]) -> dict[str, Any]:
    return {
        **report._asdict(),
        "budget": budget,
        "fits": report.peak_in_run <= budget,
        "smaller": [
            {
                "change": plan.change,
                "peak": plan.report.peak,
                "peak_in_run": plan.report.peak_in_run,
                "fits": plan.report.peak_in_run <= budget,
            }
            for plan in plans
        ],
    }


def _show(tables: Any, report: ps.memory.MemoryReport, budget: int, plans: list[Plan]) -> None:
    rows = [(name, size(getattr(report, name)), what) for name, what in _KINDS.items()]
    tables.table(
        f"Memory of one step on {report.device}",
        [("kind", "left"), ("size", "right"), ("", "left")],
        rows,
        footer=("peak", size(report.peak), "of one step"),
    )
    verb = "fits into" if report.peak_in_run <= budget else "does not fit into"
    tables.say(f"The run needs {size(report.peak_in_run)} and {verb} {size(budget)}.")
    if report.peak_in_run <= budget:
        return
    if plans:
        tables.say("")
        rows = [
            (
                " ".join(f"--{name.replace('_', '-')} {value}" for name, value in plan.change.items()),
                size(plan.report.peak_in_run),
                "fits" if plan.report.peak_in_run <= budget else "",
            )
            for plan in plans
        ]
        tables.table("With these settings", [("settings", "left"), ("peak", "right"), ("", "left")], rows)
    if not plans or plans[-1].report.peak_in_run > budget:
        tables.say("None of these fits. A smaller model or a shorter context needs less.")


def size(nbytes: int) -> str:
    """Return bytes in decimal units.

    >>> size(1_234_567), size(999), size(999_999)
    ('1.23 MB', '999 B', '1 MB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    shown = float(f"{nbytes:.3g}")
    unit, factor = next(each for each in _SIZES if shown >= each[1])
    return f"{shown / factor:.4g} {unit}"
