"""The records of `train`: texts, prompts with completions, and conversations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._core import checks
from purestep._data.text import tokenizers
from purestep._data.text.records import Record, shown
from purestep._data.text.turns import Writer
from purestep._loop.config import kinds
from purestep.cli.training import loading
from purestep.cli.training.settings import CALLER, Task

IGNORED = -100  # a target that does not count
_SHAPES = 4  # lengths to which records are padded; each is compiled once


class Kind(NamedTuple):
    """What the records of a file hold.

    Attributes:
        name: texts, prompts with completions, or conversations.
        fields: the names of the fields in the file, by the names in `ps.data.tokenize_records`.
        settings: the setting that names each field.
    """

    name: Literal["text", "completion", "chat"]
    fields: dict[str, str]
    settings: dict[str, str]


def kind_of(task: Task) -> Kind:
    """Return what the settings ask for; without a name of a field, what the first record holds.

    Raises:
        ValueError: if the file has no record, or a line is not a JSON object.
        OSError: if it cannot be read.
    """
    found: set[str] = set()
    if not (task.field or task.prompt_field or task.completion_field or task.chat_field):
        found = set(next(_lines("data", task.data), {}))
    if task.chat_field or "messages" in found:
        return Kind("chat", {"messages": task.chat_field or "messages"}, {"messages": "chat_field"})
    if task.prompt_field or task.completion_field or found & {"prompt", "completion"}:
        fields = {
            "prompt": task.prompt_field or "prompt",
            "completion": task.completion_field or "completion",
        }
        return Kind("completion", fields, {name: f"{name}_field" for name in fields})
    return Kind("text", {"text": task.field or "text"}, {"text": "field"})


def records(name: str, path: str, kind: Kind) -> Iterator[Record]:
    """Yield the records of a file with the fields of the kind, and `tools`.

    Raises:
        ValueError: if a record lacks a field or there is no record; with the file, the line and the nearest
            name.
    """
    record = None
    for record in _lines(name, path):
        for own, field in kind.fields.items():
            if field not in record:
                raise checks.error(
                    CALLER,
                    f"{name}: {record.where} must have the field {field!r}, got {shown(record)}; "
                    f"{_hint(kind, own, field, record)}",
                )
        kept = Record({field: record[field] for field in (*kind.fields.values(), "tools") if field in record})
        kept.where = record.where
        yield kept
    if record is None:
        raise checks.error(CALLER, f"{name} must hold records, {path} has none")


def texts(name: str, path: str, kind: Kind) -> Iterator[str]:
    """Yield the text of each record, with a newline at its end."""
    field = kind.fields["text"]
    for record in records(name, path, kind):
        if not isinstance(record[field], str):
            raise checks.error(
                CALLER, f"{name}: {record.where}: {field} must be a string, got {record[field]!r:.40}"
            )
        yield record[field] + "\n"


def examples(task: Task, name: str, path: str, kind: Kind, tokenizer: Any) -> ps.data.Examples:
    """Return the examples of a file of prompts with completions, or of conversations.

    Raises:
        ValueError: if a record is not of the kind, too long, or its tokens are out of the vocabulary.
    """
    with loading.blaming("tokenizer", task.tokenizer), loading.renaming("tokenize_records", name):
        found = ps.data.tokenize_records(
            records(name, path, kind), tokenizer,
            context=task.context, long=task.long, mask_prompt=task.mask_prompt, fields=kind.fields,
        )  # fmt: skip
    size = task.vocabulary or tokenizers.size_of(tokenizer) or 0
    for number, example in enumerate(found.examples):
        wrong = next((token for token in example.tokens if not 0 <= token < size), None)
        if wrong is not None or len(example.tokens) < 2:
            rule = f"have tokens in [0, {size}), the vocabulary, got {wrong}"
            rule = "have at least 2 tokens, got 1" if wrong is None else rule
            where = f"example {number} of {path}" if found.dropped else _place(name, path, kind, number)
            raise checks.error(CALLER, f"{name}: {where} must {rule}")
    return found


def source(found: Sequence[ps.data.Example], batch_size: int, seed: int) -> Any:
    """Return a source of rows of records: each one comes once an epoch; targets not to learn are `IGNORED`.

    The batches have a few shapes, with at most `batch_size` rows of the longest record's length.
    """
    longest = max(len(example.tokens) for example in found) - 1
    buckets = ps.data.LengthBuckets(found, batch_size * longest, max_shapes=_SHAPES, seed=seed)
    return ps.data.map(buckets, _ignoring)


def to_learn(found: Sequence[ps.data.Example]) -> int:
    """Return the number of tokens that are learned."""
    return sum(sum(example.mask[1:]) for example in found)


def beginning(example: ps.data.Example) -> list[int]:
    """Return the tokens before the first one that is learned, at least one."""
    mask = list(example.mask)
    return list(example.tokens[: max(mask.index(1), 1)])


def prompted(task: Task, kind: Kind, tokenizer: Any) -> Callable[[str], list[int]]:
    """Return a function from a prompt to its tokens: those before a completion, or before an answer."""
    writer = Writer.of(CALLER, tokenizer, None)

    def encode(text: str) -> list[int]:
        with loading.blaming("tokenizer", task.tokenizer):
            if kind.name == "chat":
                messages = [{"role": "user", "content": text}]
                return tokenizers.listed(
                    tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
                )
            return [*writer.beginning, *tokenizers.tokens_of(tokenizer, text)]

    return encode


def _hint(kind: Kind, own: str, field: str, record: Record) -> str:
    close = kinds.nearest(field, [name for name in record if isinstance(name, str)])
    option = f"--{kind.settings[own].replace('_', '-')}"
    if close:
        return f"did you mean {option} {close}?"
    if field != "text":
        return f"{option} names another"
    return "--field, --prompt-field and --completion-field, or --chat-field name others"


def _ignoring(batch: Mapping[str, mx.array]) -> dict[str, mx.array]:
    targets = mx.where(batch["weights"] > 0, batch["targets"], IGNORED)
    return {"inputs": batch["inputs"], "targets": targets}


def _lines(name: str, path: str) -> Iterator[Record]:
    lines: Any = ps.data.jsonl(path)
    with loading.renaming("jsonl", name):
        yield from lines


def _place(name: str, path: str, kind: Kind, number: int) -> str:
    """Return the place of a record by its number."""
    return next(each.where for index, each in enumerate(records(name, path, kind)) if index == number)
