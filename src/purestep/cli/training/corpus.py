"""The data of `train`: tokens on disk, or records in memory, as sources of batches."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._core import checks
from purestep._data.text import tokenizers, tokenizing
from purestep._data.text.files import TokenFile
from purestep._data.text.windows import Characters
from purestep.cli.training import encoding, facts, loading, records
from purestep.cli.training.records import IGNORED, Kind
from purestep.cli.training.settings import CALLER, Task

_PIECE = 1 << 20  # characters or tokens read at a time


class Corpus(NamedTuple):
    """The data of a run.

    Attributes:
        train: a source of shuffled windows or records.
        validation: a source in which every token is a target once.
        train_tokens: the number of tokens to learn.
        validation_tokens: the number of tokens to predict.
        vocabulary: the number of different tokens.
        prompt: the first tokens of the validation data, at most a window; those before the first completion.
        encode: from a prompt to tokens; `None` without a tokenizer.
        decode: from tokens to a text.
        end: the token that ends a sample, or `None`.
        facts: the content of the files in numbers, to compare with those of a resumed run.
        notes: sentences on records that are not learned as they are.
    """

    train: Any
    validation: Any
    train_tokens: int
    validation_tokens: int
    vocabulary: int
    prompt: list[int]
    encode: Callable[[str], list[int]] | None
    decode: Callable[[Sequence[int]], str]
    end: int | None
    facts: dict[str, Any]
    notes: list[str]


class Inspected(NamedTuple):
    """Data files that were read once and are sound.

    Attributes:
        facts: size and checksum by setting, and the symbols of a character vocabulary.
        tokenizer: of a text; of a token file the one that is given, or `None`.
        kind: of the records of a JSONL file.
        examples: of prompts with completions and of conversations, by setting.
    """

    facts: dict[str, Any]
    tokenizer: Any
    kind: Kind | None = None
    examples: dict[str, ps.data.Examples] | None = None


def inspected(task: Task) -> Inspected:
    """Read the data files once, and write nothing. Texts and tokens are read in bounded memory.

    Raises:
        ValueError: if a file is not a regular file, not UTF-8, has no text, or is not JSONL.
        OSError: if a file cannot be read.
    """
    paths = _paths(task)
    found: dict[str, Any] = {name: facts.content(name, path) for name, path in paths}
    kind = records.kind_of(task) if task.format == "jsonl" else None
    masked = kind is not None and kind.name != "text"
    for name, given in (("long", task.long != "refuse"), ("mask_prompt", not task.mask_prompt)):
        if given and not masked:
            raise checks.error(
                CALLER, f"{name} needs prompts with completions or conversations, {task.data} has none"
            )
    if task.format == "tokens":
        return Inspected(found, task.tokenizer and encoding.tokenizer_of(task, masked=False))
    tokenizer = encoding.tokenizer_of(task, masked=masked)
    if kind is not None and masked:
        if kind.name == "chat" and not callable(getattr(tokenizer, "apply_chat_template", None)):
            raise checks.error(
                CALLER,
                f"tokenizer must have a method apply_chat_template for messages, {task.tokenizer} has none",
            )
        examples = {name: records.examples(task, name, path, kind, tokenizer) for name, path in paths}
        sums = [facts.tokens(each.examples) for each in examples.values()]
        return Inspected({**found, "tokens": sums}, tokenizer, kind, examples)
    if tokenizer is not None:
        for name, path in paths:
            for _ in _texts(task, kind, name, path):  # refuses what is not text
                pass
        return Inspected(found, tokenizer, kind)
    symbols: set[str] = set()
    for text in _texts(task, kind, "data", task.data):
        symbols.update(text)
    if task.validation is not None:
        for text in _texts(task, kind, "validation", task.validation):
            unknown = sorted(set(text) - symbols)
            if unknown:
                said = "".join(unknown)[:20]
                raise checks.error(
                    CALLER,
                    f"validation must have no characters but those of data, {task.validation} has {said!r}",
                )
    characters = Characters("".join(sorted(symbols)))
    return Inspected({**found, "symbols": characters.symbols}, characters, kind)


def vocabulary(task: Task) -> int:
    """Return the number of tokens; the data are read only if the settings do not tell it.

    Raises:
        ValueError: if the data do not tell it either.
        OSError: if a file cannot be read.
    """
    if task.vocabulary is not None:
        return task.vocabulary
    found = inspected(task)
    if task.format == "tokens":
        return _vocabulary(task, found, {"data": TokenFile(task.data, task.token_dtype)})
    known = tokenizers.size_of(found.tokenizer)
    if known is None:
        raise checks.error(CALLER, "vocabulary must be given: the tokenizer does not tell its size")
    return known


def prepared(
    task: Task, found: Inspected, directory: Path, batch_size: int, seed: int, *, again: bool
) -> Corpus:
    """Return the data as sources; the tokens of a text are written to the directory.

    Args:
        task: the settings.
        found: the inspected files.
        directory: of the run.
        batch_size: windows or records of a batch.
        seed: of the order.
        again: use token files that a run has written before.

    Raises:
        ValueError: if there are too few tokens or records, or a token is outside the vocabulary.
        OSError: if a file cannot be read or written.
    """
    if found.kind is not None and found.examples is not None:
        return _of_records(task, found.kind, found.examples, found, batch_size, seed)
    files = {name: _tokens(task, name, path, found, directory, again=again) for name, path in _paths(task)}
    whole = files["data"]
    if task.validation is not None:
        train, validation = whole, files["validation"]
    else:
        split = max(len(whole) - max(int(len(whole) * task.validation_fraction), 2), 0)
        train, validation = whole[:split], whole[split:]
    # Shuffled windows begin at a random offset, which takes the place of one window.
    least = task.context * (batch_size + 1) if batch_size > 1 else task.context + 1
    rule = f"batch_size={batch_size} windows of context={task.context}"
    for name, file, count, of in (("data", train, least, rule), ("validation", validation, 2, "one target")):
        if len(file) < count:
            kept = " to learn" if name == "data" and task.validation is None else ""
            raise checks.error(
                CALLER, f"{name} must have at least {count} tokens{kept} for {of}, got {len(file)}"
            )
    tokenizer = found.tokenizer
    windows = ps.data.TokenWindows
    return Corpus(
        windows(train, batch_size, task.context, seed=seed),
        windows(validation, batch_size, task.context, shuffle=False, ignore_index=IGNORED),
        len(train),
        len(validation) - 1,
        _vocabulary(task, found, files),
        _listed(validation.read(0, min(task.context, len(validation)))),
        None if tokenizer is None else lambda text: _encoded(task, tokenizer, text),
        encoding.decoder(task, tokenizer),
        None,
        found.facts,
        [],
    )


def _of_records(
    task: Task,
    kind: Kind,
    examples: dict[str, ps.data.Examples],
    found: Inspected,
    batch_size: int,
    seed: int,
) -> Corpus:
    """Return prompts with completions, or conversations, as sources."""
    train = examples["data"].examples
    if "validation" in examples:
        validation = examples["validation"].examples
    else:
        count = max(int(len(train) * task.validation_fraction), 1)
        train, validation = train[:-count], train[-count:]
    if not train:
        raise checks.error(
            CALLER, f"data must have at least 2 records, one of them for validation, got {len(validation)}"
        )
    notes = [
        f"{count} records of {name} are longer than context={task.context}: {what}"
        for name, each in examples.items()
        for count, what in ((each.dropped, "left out"), (each.truncated, "truncated"))
        if count
    ]
    end = getattr(found.tokenizer, "eos_token_id", None)
    if end is None and kind.name == "completion":
        notes.append("the tokenizer has no eos_token_id, so the model does not learn to end a completion")
    return Corpus(
        records.source(train, batch_size, seed),
        records.source(validation, batch_size, seed),
        records.to_learn(train),
        records.to_learn(validation),
        task.vocabulary or tokenizers.size_of(found.tokenizer) or 0,
        records.beginning(validation[0]),
        records.prompted(task, kind, found.tokenizer),
        encoding.decoder(task, found.tokenizer),
        end,
        found.facts,
        notes,
    )


def _paths(task: Task) -> list[tuple[str, str]]:
    both = (("data", task.data), ("validation", task.validation))
    return [(name, path) for name, path in both if path is not None]


def _texts(task: Task, kind: Kind | None, name: str, path: str) -> Iterator[str]:
    """Yield the text of a file in pieces."""
    if kind is not None:
        return records.texts(name, path, kind)
    return tokenizing.pieces(CALLER, Path(path), _PIECE)


def _encoded(task: Task, tokenizer: Any, text: str) -> list[int]:
    with loading.blaming("tokenizer", task.tokenizer):
        return tokenizers.tokens_of(tokenizer, text)


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
    pieces = (_encoded(task, tokenizer, text) for text in _texts(task, found.kind, name, path))
    with loading.renaming("TokenFile.write", f"tokenizer: {task.tokenizer}"):
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
