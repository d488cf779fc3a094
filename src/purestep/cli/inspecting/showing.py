"""Show the answer of `inspect` in a terminal: tables, the record of a checkpoint, and problems."""

import time
from typing import Any

from purestep.cli.core import output

_HEADS = ("array", "dtype", "shape", "size", "norm", "checksum")


def show_arrays(tables: Any, answer: dict[str, Any]) -> None:
    """Print the answer of `inspected`; `tables` is the module that prints tables."""
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


def show_difference(tables: Any, answer: dict[str, Any]) -> None:
    """Print the answer of `compared`."""
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
