"""`python -m purestep inspect PATH`: the content of checkpoints and files of arrays."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep.cli.core import output
from purestep.cli.core.commands import ENDS, Parser, command
from purestep.cli.inspecting.answering import compared, inspected
from purestep.cli.inspecting.opening import CALLER, open_path
from purestep.cli.inspecting.showing import show_arrays, show_difference

_DESCRIPTION = """Show stored arrays and verify every checksum. PATH is the directory of a run, one
checkpoint, a safetensors file or the index of several files, a file of checkpoint.to_bytes, or a
directory of safetensors files, such as that of a demo."""
_EPILOG = f"""With --diff the last line is one word: identical, different or damaged. Two states are identical
if their arrays have the same paths, dtypes, shapes and bits. --step selects the checkpoint of PATH; OTHER
may be the directory of a checkpoint.

Exit status: 0 no damage; 1 damage was found, or the output cannot be written; 2 the arguments are wrong, or
a file cannot be read.

Exit status with --diff: 0 identical; 1 different, or the output cannot be written; 2 damaged, the arguments
are wrong, or a file cannot be read.

{ENDS}"""
_DIFF_STATUS = {"identical": 0, "different": 1, "damaged": 2}


class _InOrder(argparse.Action):
    """Stores an option and records the order in which options were typed."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *rest: Any
    ) -> None:
        """Store the value."""
        setattr(namespace, self.dest, values)
        namespace.order = (*getattr(namespace, "order", ()), self.dest)


@command("inspect")
def main(arguments: Sequence[str]) -> int:
    """Inspect one path, or the difference of two."""
    parser = Parser("inspect", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("path", metavar="PATH", type=Path, action=_InOrder, help="a directory or a file")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of a run (default: the newest)")
    parser.add_argument(
        "--diff", type=Path, metavar="OTHER", action=_InOrder, help="compare with another directory or file"
    )
    parser.add_argument(
        "--leaves", metavar="PATTERN", help="only arrays with matching paths, such as *.weight"
    )
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args(arguments)
    tables = None if options.json else output.need_tables(CALLER)
    if tables is None and not options.json:
        return 2
    try:
        with mx.stream(mx.cpu):  # GPUs have no float64 and may be busy
            found = open_path(options.path, options.step)
            if options.diff is None:
                answer, show = inspected(found, options.leaves), show_arrays
            else:
                both = found, open_path(options.diff, None)
                first, second = both if options.order[0] == "path" else both[::-1]  # in the order typed
                answer, show = compared(first, second, options.leaves), show_difference
    except (OSError, ValueError, TypeError) as error:
        output.fail(CALLER, error)
        return 2
    if options.json:
        output.print_json(answer)
    else:
        show(tables, answer)
    return _DIFF_STATUS[answer["verdict"]] if "verdict" in answer else 1 if answer["problems"] else 0
