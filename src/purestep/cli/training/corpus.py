"""The data of `train`: a text, JSONL or token file as one sequence of tokens on disk."""

import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._data.text import tokenizers, tokenizing
from purestep._data.text.files import TokenFile
from purestep._data.text.windows import Characters
from purestep.cli.training import loading
from purestep.cli.training.settings import CALLER, Task
from purestep.cli.training.windows import ConsecutiveTokens, RandomTokens

_PIECE = 1 << 20  # characters or tokens read at a time
_LONGEST_LINE = 64 << 20  # bytes of a JSONL record
_FACTS = "data.json"


class Bytes:
    """A tokenizer whose tokens are the bytes of a text in UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 are shown as a replacement character."""
        return bytes(tokens).decode(errors="replace")


class Corpus(NamedTuple):
    """The data of a run.

    Attributes:
        train: a source of random windows.
        validation: a source of windows in order, every token a target once.
        train_tokens: the number of tokens to learn.
        validation_tokens: the number of tokens to predict.
        vocabulary: the number of different tokens.
        prompt: the first tokens of the validation data, at most a window.
        encode: from a text to tokens; `None` for a token file.
        decode: from tokens to a text.
        facts: the content of the files in numbers, to compare with those of a resumed run.
    """

    train: RandomTokens
    validation: ConsecutiveTokens
    train_tokens: int
    validation_tokens: int
    vocabulary: int
    prompt: list[int]
    encode: Callable[[str], list[int]] | None
    decode: Callable[[Sequence[int]], str]
    facts: dict[str, Any]


class Inspected(NamedTuple):
    """Data files that were read once and are sound.

    Attributes:
        facts: size and checksum by setting, and the symbols of a character vocabulary.
        tokenizer: of a text; `None` for tokens.
    """

    facts: dict[str, Any]
    tokenizer: Any


def inspected(task: Task) -> Inspected:
    """Read the data files once, in bounded memory, and write nothing.

    Raises:
        ValueError: if a file is not a regular file, not UTF-8, has no text, or is not JSONL.
        OSError: if a file cannot be read.
    """
    facts: dict[str, Any] = {name: _content(name, path) for name, path in _paths(task)}
    if task.format == "tokens":
        return Inspected(facts, None)
    if task.tokenizer != "characters":
        tokenizer = Bytes() if task.tokenizer == "bytes" else loading.made("tokenizer", task.tokenizer)
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise checks.error(CALLER, f"tokenizer must have encode and decode, got {tokenizer!r:.80}")
        if tokenizers.size_of(tokenizer) is None and task.vocabulary is None:
            raise checks.error(CALLER, "vocabulary must be given: the tokenizer does not tell its size")
        for name, path in _paths(task):
            for _ in _texts(task, name, path):  # refuses what is not text
                pass
        return Inspected(facts, tokenizer)
    symbols: set[str] = set()
    for text in _texts(task, "data", task.data):
        symbols.update(text)
    characters = Characters("".join(sorted(symbols)))
    if task.validation is not None:
        for text in _texts(task, "validation", task.validation):
            unknown = sorted(set(text) - symbols)
            if unknown:
                said = "".join(unknown)[:20]
                raise checks.error(
                    CALLER,
                    f"validation must have no characters but those of data, {task.validation} has {said!r}",
                )
    return Inspected({**facts, "symbols": characters.symbols}, characters)


def check_same_data(begun: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run with other files."""
    for name in ("data", "validation"):
        if begun.get(name) != now.get(name):
            was = begun.get(name, {})
            raise checks.error(
                CALLER,
                f"{name} must be the file that the run began with, of {was.get('bytes', '?')} bytes: its "
                "content has changed",
            )


def read_facts(directory: Path) -> dict[str, Any]:
    """Return the facts of the data that a run began with."""
    path = directory / _FACTS
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise checks.error(CALLER, f"{path} is damaged: it must hold a JSON object")
    return facts


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Write the facts of the data."""
    (directory / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def prepared(
    task: Task, found: Inspected, directory: Path, batch_size: int, seed: int, *, again: bool
) -> Corpus:
    """Return the data as sources; the tokens of a text are written to the directory.

    Args:
        task: the settings.
        found: the inspected files.
        directory: of the run.
        batch_size: windows of a batch.
        seed: of the random windows.
        again: use token files that a run has written before.

    Raises:
        ValueError: if there are too few tokens, or a token is outside the vocabulary.
        OSError: if a file cannot be read or written.
    """
    files = {name: _tokens(task, name, path, found, directory, again=again) for name, path in _paths(task)}
    whole = files["data"]
    if task.validation is not None:
        train, validation = (whole, 0, len(whole)), (files["validation"], 0, len(files["validation"]))
    else:
        split = len(whole) - max(int(len(whole) * task.validation_fraction), 2)
        train, validation = (whole, 0, split), (whole, max(split, 0), len(whole))
    for name, (_, start, stop), least in (("data", train, task.context + 1), ("validation", validation, 2)):
        if stop - start < least:
            rule = f"{name} must have at least {least} tokens for context={task.context}"
            raise checks.error(CALLER, f"{rule}, got {max(stop - start, 0)}")
    vocabulary = _vocabulary(task, found, files)
    file, start, stop = validation
    tokenizer = found.tokenizer
    return Corpus(
        RandomTokens(*train, batch_size=batch_size, context=task.context, seed=seed),
        ConsecutiveTokens(*validation, batch_size=batch_size, context=task.context),
        train[2] - train[1],
        stop - start,
        vocabulary,
        _listed(file.read(start, min(start + task.context, stop))),
        None if tokenizer is None else lambda text: tokenizers.tokens_of(tokenizer, text),
        (lambda tokens: " ".join(map(str, tokens))) if tokenizer is None else _decoder(tokenizer),
        found.facts,
    )


def _paths(task: Task) -> list[tuple[str, str]]:
    both = (("data", task.data), ("validation", task.validation))
    return [(name, path) for name, path in both if path is not None]


def _content(name: str, path: str) -> dict[str, int]:
    """Return the size and a checksum of a regular file."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise checks.error(CALLER, f"{name} must be a file, {path} is a {kind}")
    size = crc = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            crc, size = zlib.crc32(part, crc), size + len(part)
    if not size:
        raise checks.error(CALLER, f"{name} must not be empty, {path} is")
    return {"bytes": size, "crc32": crc}


def _texts(task: Task, name: str, path: str) -> Iterator[str]:
    """Yield the text of a file in pieces; each record of a JSONL file ends with a newline."""
    if task.format == "text":
        yield from tokenizing.pieces(CALLER, Path(path), _PIECE)
        return
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if line.strip():
                yield _record(task.field, line, f"{name}: line {number} of {path}") + "\n"
    if not number:
        raise checks.error(CALLER, f"{name} must hold records, {path} has none")


def _record(field: str, line: bytes, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise checks.error(CALLER, f"{place} must be a JSON object, got {line[:40]!r}") from None
    if not isinstance(record, dict) or field not in record:
        names = ", ".join(map(str, record))[:80] if isinstance(record, dict) else type(record).__name__
        raise checks.error(CALLER, f"{place} must have the field {field!r}, got {names or 'no field'}")
    if not isinstance(record[field], str):
        raise checks.error(CALLER, f"{place}: {field} must be a string, got {record[field]!r:.40}")
    return record[field]


def _tokens(task: Task, name: str, path: str, found: Inspected, directory: Path, *, again: bool) -> TokenFile:
    if task.format == "tokens":
        try:
            return TokenFile(path, task.token_dtype)
        except ValueError as error:
            said = str(error).removeprefix("TokenFile: ")
            raise checks.error(CALLER, f"token_{said}" if said.startswith("dtype ") else said) from None
    out = directory / ("tokens.bin" if name == "data" else "validation.bin")
    if again and out.exists():
        return TokenFile(out)
    tokenizer = found.tokenizer
    size = task.vocabulary or tokenizers.size_of(tokenizer) or 0
    dtype = "uint16" if 0 < size <= 65536 else "uint32"
    pieces = (tokenizers.tokens_of(tokenizer, text) for text in _texts(task, name, path))
    return TokenFile.write(out, pieces, dtype=dtype, tokenizer=tokenizers.name_of(tokenizer))


def _vocabulary(task: Task, found: Inspected, files: dict[str, TokenFile]) -> int:
    """Return the number of tokens; refuse files with a token outside of it."""
    known = task.vocabulary
    if known is None and found.tokenizer is not None:
        known = tokenizers.size_of(found.tokenizer)
    largest = 0
    for name, file in files.items():
        position = 0
        for piece in file.pieces(_PIECE):
            low, high = _extremes(piece)
            if low < 0 or (known is not None and high >= known):
                wrong = low if low < 0 else high
                place = position + _listed(piece).index(wrong)
                limit = "at least 0" if known is None else f"in [0, {known}), the vocabulary"
                raise checks.error(
                    CALLER, f"{name} must have tokens {limit}, got {wrong} at position {place}"
                )
            position, largest = position + piece.size, max(largest, high)
    return largest + 1 if known is None else known


def _extremes(piece: mx.array) -> tuple[int, int]:
    both: Any = mx.stack([piece.min(), piece.max()]).tolist()
    return both[0], both[1]


def _listed(tokens: mx.array) -> list[int]:
    numbers: Any = tokens.tolist()
    return numbers


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    if isinstance(tokenizer, Characters):
        return lambda tokens: "".join(tokenizer.symbols[token] for token in tokens)
    return lambda tokens: str(tokenizer.decode(list(tokens)))
