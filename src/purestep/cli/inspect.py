"""`python -m purestep inspect PATH`: the content of checkpoints and files of arrays."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep.cli import output
from purestep.cli.commands import ENDS, Parser, command
from purestep.cli.inspection import CALLER, compared, inspected, opened

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
_HEADS = ("array", "dtype", "shape", "size", "norm", "checksum")
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
            found = opened(options.path, options.step)
            if options.diff is None:
                answer, show = inspected(found, options.leaves), _show
            else:
                both = found, opened(options.diff, None)
                first, second = both if options.order[0] == "path" else both[::-1]  # in the order typed
                answer, show = compared(first, second, options.leaves), _show_difference
    except (OSError, ValueError, TypeError) as error:
        output.fail(CALLER, error)
        return 2
    if options.json:
        output.print_json(answer)
    else:
        show(tables, answer)
    return _DIFF_STATUS[answer["verdict"]] if "verdict" in answer else 1 if answer["problems"] else 0


def _show(tables: Any, answer: dict[str, Any]) -> None:
    run, record, entries = answer["run"], answer["record"], answer["arrays"]
    if answer["files"] is not None:
        _show_files(tables, answer["files"])
    if run is not None:
        tables.table(
            f"{run['path']}: {output.counted(len(run['checkpoints']), 'checkpoint')}",
            [
                ("step", "right"),
                ("saved (UTC)", "left"),
                ("metrics", "left"),
                ("size", "right"),
                ("", "left"),
            ],
            [
                (
                    str(checkpoint.step),
                    _date(checkpoint.time),
                    _pairs(checkpoint.metrics),
                    "" if checkpoint.bytes is None else output.size(checkpoint.bytes),
                    "damaged" if checkpoint.problems else "",
                )
                for checkpoint in run["checkpoints"]
            ],
        )
        if run["writer"]:
            tables.say(f"being written by {run['writer']}")
        for left in run["temporaries"]:
            tables.say(f"left behind by {left.owner}: {left.name}, {output.size(left.bytes)}")
    if answer["source"] is not None:
        kept = sum(entry["bytes"] for entry in entries)
        tables.table(
            f"{answer['source']} ({answer['kind']})",
            list(zip(_HEADS, ("left", "left", "left", "right", "right", "left"), strict=True)),
            [
                (
                    entry["path"],
                    entry["dtype"],
                    "x".join(map(str, entry["shape"])) or "0-d",
                    output.size(entry["bytes"]),
                    "" if entry["norm"] is None else output.number(entry["norm"]),
                    entry["status"],
                )
                for entry in entries
            ],
            footer=(output.counted(len(entries), "array"), "", "", output.size(kept), "", ""),
        )
    if record is not None:
        versions = _pairs(record["versions"])
        tables.say(f"step {record['step']}, saved {_date(record['time'])} UTC; {versions}")
        if record["metrics"]:
            tables.say(f"metrics: {_pairs(record['metrics'])}")
        if record["metadata"]:
            tables.say(f"metadata: {record['metadata']!r:.300}")
    _show_problems(tables, answer)


def _show_files(tables: Any, files: list[dict[str, Any]]) -> None:
    tables.table(
        output.counted(len(files), "file"),
        [("file", "left"), ("written (UTC)", "left"), ("arrays", "right"), ("size", "right"), ("", "left")],
        [
            (
                file["name"],
                _date(file["time"]),
                "" if file["arrays"] is None else str(file["arrays"]),
                "" if file["bytes"] is None else output.size(file["bytes"]),
                "damaged" if file["problems"] else "",
            )
            for file in files
        ],
    )


def _show_difference(tables: Any, answer: dict[str, Any]) -> None:
    if answer["first"] is not None:
        tables.say(f"first:  {answer['first']}", f"second: {answer['second']}")
        rows = [(path, "only in the first", "", "", "") for path in answer["only_in_first"]]
        rows += [(path, "only in the second", "", "", "") for path in answer["only_in_second"]]
        for word in ("reshaped", "retyped"):
            rows += [
                (found["path"], f"{word}: {found['first']}, {found['second']}", "", "", "")
                for found in answer[word]
            ]
        rows += [
            (
                found["path"],
                "differs",
                output.number(found["max_abs"]),
                output.number(found["relative"]),
                "" if found["ulps"] is None else str(found["ulps"]),
            )
            for found in answer["differ"]
        ]
        heads = [
            ("array", "left"),
            ("", "left"),
            ("max abs", "right"),
            ("relative", "right"),
            ("ulps", "right"),
        ]
        if rows:
            tables.table("differences", heads, rows)
        tables.say(f"identical bit for bit: {answer['same_bits']}, different: {len(rows)}")
    _show_problems(tables, answer)
    tables.say(answer["verdict"])


def _show_problems(tables: Any, answer: dict[str, Any]) -> None:
    if answer["problems"]:
        tables.say(
            f"{output.counted(len(answer['problems']), 'problem')}:",
            *(f"  {problem}" for problem in answer["problems"]),
        )


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "no date"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {output.number(value) if isinstance(value, float) else value}"
        for name, value in values.items()
    )
