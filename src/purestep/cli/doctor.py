"""`python -m purestep doctor`: what this machine has, how fast it is, and what is wrong."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from purestep._core.escaping import printable
from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.doctoring import compiling, machine, preflight, speeds
from purestep.cli.doctoring.finding import ADVICE, WRONG, Finding, checked

_DESCRIPTION = """Check the machine: versions, device, memory, BLAS, whether mx.compile compiles, the speed of
matrix products, copies and the disk, distributed backends, settings of CUDA graphs, and one training step."""
_EPILOG = f"""Exit status: 0 nothing is wrong, though there may be advice; 1 something is wrong, or the output
cannot be written; 2 the arguments are wrong. {ENDS}"""

_NARROW = 24  # columns beside the name of a check; in less, its answer stands below


@command("doctor")
def main(arguments: Sequence[str]) -> int:
    """Run every check and print what they found."""
    parser = Parser("doctor", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, default=Path(), help="where checkpoints go (default: here)"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args(arguments)
    tables = None if options.json else output.need_tables("doctor")
    if tables is None and not options.json:
        return 2
    found = []
    for finding in (checked(name, check) for name, check in checks(options.dir)):
        if finding is not None:
            found.append(finding)
            if tables is not None:
                tables.say(*_lines(finding))
    wrong = [finding for finding in found if finding.state == WRONG]
    if tables is None:
        advice = [finding.name for finding in found if finding.state == ADVICE]
        answer = {
            "ok": not wrong,
            "wrong": [finding.name for finding in wrong],
            "advice": advice,
            "checks": [finding._asdict() for finding in found],
        }
        output.print_json(answer)
    else:
        tables.say("")
        tables.say(*_summary(found))
    return 1 if wrong else 0


def checks(directory: Path) -> list[tuple[str, Callable[[], Finding | None]]]:
    """Return the names and functions of all checks, in the order of the output."""
    return [
        ("versions", machine.versions),
        ("device", machine.chip),
        ("memory", machine.room),
        ("blas", machine.blas),
        ("compile", compiling.compilation),
        ("matmul", speeds.products),
        ("copy", speeds.copies),
        ("disk", partial(speeds.disk, directory)),
        ("distributed", machine.distributed),
        ("cuda graphs", machine.graphs),
        ("preflight", preflight.preflight),
    ]


def _lines(finding: Finding) -> list[str]:
    """Return the lines of a finding; on a terminal they are wrapped beside its name."""
    head = f"{finding.state:<6}  {finding.name:<11}  "
    if not sys.stdout.isatty():
        return [f"{head}{finding.said}"]
    width, said = shutil.get_terminal_size().columns, printable(finding.said)
    if width < len(head) + _NARROW:
        indent = " " * min(2, width - 1)
        below = textwrap.wrap(said, width, initial_indent=indent, subsequent_indent=indent)
        return [f"{finding.state} {finding.name}", *below]
    return textwrap.wrap(said, width, initial_indent=head, subsequent_indent=" " * len(head))


def _summary(found: Sequence[Finding]) -> list[str]:
    """Return what to do, what is wrong first."""
    lines = [
        f"{finding.state}: {finding.name}. {finding.remedy}."
        for state in (WRONG, ADVICE)
        for finding in found
        if finding.state == state
    ]
    return lines or ["Nothing is wrong."]
