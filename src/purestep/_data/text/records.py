"""Records: one JSON object a line, with the place of each for errors."""

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from purestep._core import checks


class Record(dict[str, Any]):
    """A record that knows its place.

    Attributes:
        where: the file and the line, such as `data.jsonl:12`.
    """

    where: str = ""


def jsonl(path: str | os.PathLike[str]) -> Iterable[dict[str, Any]]:
    """Read the records of a JSON Lines file: one JSON object a line, in UTF-8. Empty lines are skipped.

    A byte-order mark is ignored. `NaN` and `Infinity`, which Python and pandas write, are read as numbers.
    The file is read line by line, each time the result is iterated, so it may exceed the memory. Errors name
    the file and the line; so do those of functions that take the records, such as `tokenize_records`.

    Args:
        path: the file.

    Returns:
        An iterable of dictionaries, which can be iterated several times.

    Raises:
        OSError: if there is no such file. The iterator raises `ValueError` for a line that is not an object.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "data.jsonl"
    >>> _ = path.write_text('{"text": "a"}' + chr(10) + '{"text": "b"}')
    >>> [record["text"] for record in jsonl(path)]
    ['a', 'b']
    """
    os.stat(path)
    return _Lines(Path(path))


class _Lines:
    """The records of a file."""

    def __init__(self, path: Path):
        self._path = path

    def __repr__(self) -> str:
        return f"jsonl({str(self._path)!r})"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield _record(f"{self._path}:{number}", line)


def _record(where: str, line: bytes) -> Record:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise checks.error(
            "jsonl",
            f"{where}: the line must be UTF-8, got byte {line[error.start]:#04x} in column {error.start + 1}",
        ) from None
    except json.JSONDecodeError as error:
        raise checks.error(
            "jsonl",
            f"{where}: the line must be a JSON object, got {_short(line)} "
            f"({error.msg} in column {error.colno})",
        ) from None
    except RecursionError:
        raise checks.error("jsonl", f"{where}: the line must not be nested so deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise checks.error(
            "jsonl", f"{where}: the line must be JSON that Python reads, got {error}"
        ) from None
    if not isinstance(values, dict):
        raise checks.error("jsonl", f"{where}: the line must be a JSON object, got {_short(line)}")
    record = Record(values)
    record.where = where
    return record


def _short(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def placed(caller: str, records: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the content of each record; refuse what is not a record.

    >>> list(placed("caller", [{"text": "a"}]))
    [('record 0', {'text': 'a'})]
    """
    if isinstance(records, (str, bytes, Mapping)):
        raise TypeError(f"{caller}: records must be an iterable of records, got {type(records).__name__}")
    for number, record in enumerate(records):
        where = getattr(record, "where", None) or f"record {number}"
        if not isinstance(record, Mapping):
            raise TypeError(f"{caller}: {where}: a record must be a mapping, got {type(record).__name__}")
        yield where, record


def renamed(caller: str, fields: Mapping[str, str] | None, known: tuple[str, ...]) -> dict[str, str]:
    """Return the name of each field in the records; refuse names of fields that are not known."""
    for name in fields or {}:
        checks.one_of(caller, "fields", name, known)
    return {name: name for name in known} | dict(fields or {})


def text_of(caller: str, where: str, record: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a text."""
    value = field_of(caller, where, record, field)
    if not isinstance(value, str):
        raise checks.error(caller, f"{where}: {field} must be a text, got {type(value).__name__}")
    return value


def field_of(caller: str, where: str, record: Mapping[str, Any], field: str) -> Any:
    """Return a field that must exist."""
    if field not in record:
        raise checks.error(caller, f"{where}: the record must have the field {field!r}, got {shown(record)}")
    return record[field]


def shown(record: Mapping[str, Any]) -> str:
    """Return the names of a record's fields for an error."""
    return ", ".join(repr(name) for name in record) or "no fields"
