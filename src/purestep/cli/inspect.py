"""`python -m purestep inspect PATH`: what a run's checkpoints, or any file of arrays, hold."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from purestep.cli import output
from purestep.cli.inspection import WHERE, compared, inspected, opened

_DESCRIPTION = """Show what is stored: the checkpoints of a run and one of them array by array; or one
checkpoint, a safetensors file or the index of several, a file of checkpoint.to_bytes. Every checksum is
verified."""
_EPILOG = """Exit codes: 0 all is well; 1 something is damaged; 2 the arguments are wrong."""
_HEADS = ("array", "dtype", "shape", "size", "norm", "checksum")


def main(arguments: Sequence[str]) -> int:
    """Inspect one path, or the difference of two."""
    parser = argparse.ArgumentParser(
        prog="python -m purestep inspect", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="a directory or a file")
    parser.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint of a run; without it the newest"
    )
    parser.add_argument("--diff", type=Path, metavar="OTHER", help="compare with another directory or file")
    parser.add_argument("--leaves", metavar="PATTERN", help="only arrays of such paths, as *.weight")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    tables = None if options.json else output.need_tables(WHERE)
    if tables is None and not options.json:
        return 2
    try:
        with mx.stream(mx.cpu):  # GPUs have no float64, and may be at work
            found = opened(options.path, options.step)
            if options.diff is None:
                answer, show = inspected(found, options.leaves), _show
            else:
                answer, show = compared(found, opened(options.diff, None), options.leaves), _show_difference
    except (OSError, ValueError, TypeError) as error:
        output.fail(WHERE, str(error))
        return 2
    if options.json:
        output.print_json(answer)
    else:
        show(tables, answer)
    return 1 if answer["problems"] else 0


def _show(tables: Any, answer: dict[str, Any]) -> None:
    run, record, entries = answer["run"], answer["record"], answer["arrays"]
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
        tables.say(f"of the same bits: {answer['same_bits']}, not: {len(rows)}")
    _show_problems(tables, answer)


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
