"""Preference data: pairs of a preferred and a rejected completion."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._data.core.tokens import token_of
from purestep._data.text import examples, layouts, turns
from purestep._data.text.examples import Example, Long
from purestep._data.text.records import field_of, placed, renamed, text_of
from purestep._data.text.tokenizers import Tokenizer

_CALLER = "tokenize_pairs"
_FIELDS = ("prompt", "chosen", "rejected")


class Pairs(NamedTuple):
    """Pairs of completions.

    Attributes:
        arrays: by name: `chosen` and `rejected`, int32 [pairs, length], the prompt, the completion and
            padding; `chosen_mask` and `rejected_mask`, float32 [pairs, length - 1], 1 for the targets of the
            completion, as `ps.losses.sequence_logps` takes them.
        dropped: the number of records that were too long and left out.
        truncated: the number of pairs of which a completion was shortened.

    >>> from purestep.data import Characters
    >>> pairs = tokenize_pairs([{"prompt": "a", "chosen": "b", "rejected": "aa"}], Characters("ab"))
    >>> sorted(pairs.arrays)
    ['chosen', 'chosen_mask', 'rejected', 'rejected_mask']
    """

    arrays: dict[str, mx.array]
    dropped: int
    truncated: int


def tokenize_pairs(
    records: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    long: Long = "refuse",
    multiple: int = 1,
    padding: int = 0,
    end_token: int | Literal["eos"] | None = "eos",
    fields: Mapping[str, str] | None = None,
) -> Pairs:
    """Tokenize preference records for `dpo_loss` and its relatives.

    A record is one of

    - `{"prompt": text, "chosen": text, "rejected": text}`;
    - the same with lists of messages, written by the tokenizer's chat template;
    - `{"chosen": messages, "rejected": messages}`: whole conversations. Their common turns are the prompt. A
      `"prompt"` that is a text is then ignored, unless both lists begin with an answer to it.

    The masks mark the completion and its end, or the assistant's turns after the prompt.

    Args:
        records: dictionaries, for example `jsonl(path)`.
        tokenizer: as in `tokenize_records`.
        context: the most tokens of a prompt with a completion. `None`: no bound.
        long: as in `tokenize_records`. A pair is dropped if one of its completions is too long.
        multiple: all rows are padded to the longest, rounded up to a multiple of this; at least 1.
        padding: the token that fills rows, in [0, 2**31).
        end_token: as in `tokenize_records`.
        fields: other names of fields in the records, such as `{"chosen": "better"}`.

    Returns:
        The arrays, evaluated, for example for `ps.data.Batches`; and the numbers of records that were
        dropped and truncated.

    Raises:
        ValueError: if a record lacks a field, a completion is empty, a record is too long, or no pair is
            left. The error names the record: its file and line, if it comes from `jsonl`.
        TypeError: if the tokenizer lacks a method, or the records are not mappings.

    >>> from purestep.data import Characters
    >>> record = {"prompt": "ab", "chosen": "b", "rejected": "aa"}
    >>> pairs = tokenize_pairs([record], Characters("ab"), padding=9)
    >>> pairs.arrays["chosen"], pairs.arrays["chosen_mask"]
    (array([[0, 1, 1, 9]], dtype=int32), array([[0, 1, 0]], dtype=float32))
    """
    writer = turns.Writer.of(_CALLER, tokenizer, end_token)
    if context is not None:
        context = checks.integer(_CALLER, "context", context, least=2)
    checks.one_of(_CALLER, "long", long, examples.LONG)
    multiple = checks.integer(_CALLER, "multiple", multiple, least=1)
    padding = token_of(_CALLER, "padding", padding)
    names = renamed(_CALLER, fields, _FIELDS)
    kept: list[tuple[Example, Example]] = []
    dropped = truncated = 0
    for where, record in placed(_CALLER, records):
        written = _written(writer, where, record, names)
        whole = [examples.compact(_CALLER, where, *each) for each in written]
        chosen, rejected = (examples.fitted(_CALLER, where, each, context, long) for each in whole)
        if chosen is None or rejected is None:
            dropped += 1
        else:
            truncated += chosen is not whole[0] or rejected is not whole[1]
            kept.append((chosen, rejected))
    if not kept:
        raise checks.error(
            _CALLER, f"records must give at least one pair, got none ({dropped} were too long)"
        )
    longest = max(2, *(len(each.tokens) for pair in kept for each in pair))
    length = -(-longest // multiple) * multiple
    arrays: dict[str, mx.array] = {}
    for name, side in (("chosen", [pair[0] for pair in kept]), ("rejected", [pair[1] for pair in kept])):
        arrays[name] = _padded([each.tokens for each in side], length, padding)
        arrays[f"{name}_mask"] = _padded([each.mask for each in side], length, 0)[:, 1:].astype(mx.float32)
    mx.eval(arrays)
    return Pairs(arrays, dropped, truncated)


def _padded(rows: list[Sequence[int]], length: int, padding: int) -> mx.array:
    flat = [number for row in rows for number in (*row, *[padding] * (length - len(row)))]
    return layouts.array(memoryview(layouts.packed(_CALLER, flat, "int32", 0)), "int32", (len(rows), length))


def _written(
    writer: turns.Writer, where: str, record: Mapping[str, Any], names: dict[str, str]
) -> list[tuple[list[int], list[int]]]:
    """Return tokens and mask of the chosen and of the rejected completion."""
    prompt, *sides = (names[name] for name in _FIELDS)
    values = [field_of(_CALLER, where, record, side) for side in sides]
    if all(isinstance(value, str) for value in values):
        before = text_of(_CALLER, where, record, prompt)
        return [writer.completion(where, *each) for each in ((side, before, record[side]) for side in sides)]
    talks = [turns.messages_of(_CALLER, where, *each) for each in zip(sides, values, strict=True)]
    before = record.get(prompt)
    answers = all(talk[0]["role"] == "assistant" for talk in talks)
    if isinstance(before, str) and answers:
        before = [{"role": "user", "content": before}]
    if before is not None and not isinstance(before, str):
        start = turns.messages_of(_CALLER, where, prompt, before)
        talks, first = [start + talk for talk in talks], len(start)
    else:
        first = _shared(*talks)
    tools = record.get("tools")
    return [
        writer.conversation(where, side, talk, first, tools) for side, talk in zip(sides, talks, strict=True)
    ]


def _shared(chosen: list[Mapping[str, Any]], rejected: list[Mapping[str, Any]]) -> int:
    """Return the number of common turns at the beginning; the last turns are never common."""
    most = min(len(chosen), len(rejected)) - 1
    return next((number for number in range(most) if chosen[number] != rejected[number]), most)
