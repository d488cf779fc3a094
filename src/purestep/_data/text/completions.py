"""Texts, prompts with completions, and conversations, as examples with masks."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from purestep._core import checks
from purestep._data.text import examples, turns
from purestep._data.text.examples import Example, Examples, Long
from purestep._data.text.records import field_of, placed, renamed, shown, text_of
from purestep._data.text.tokenizers import Tokenizer

_CALLER = "tokenize_records"
_FIELDS = ("messages", "prompt", "completion", "text")


def tokenize_records(
    records: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    context: int | None = None,
    long: Long = "refuse",
    mask_prompt: bool = True,
    end_token: int | Literal["eos"] | None = "eos",
    fields: Mapping[str, str] | None = None,
) -> Examples:
    """Tokenize records for supervised fine-tuning, and mask their prompts.

    A record is one of

    - `{"messages": [{"role": ..., "content": ...}, ...]}`, written by the tokenizer's chat template; the
      turns of the assistant are learned. `"tools"`, if it exists, is passed on to the template.
    - `{"prompt": text, "completion": text}`; the completion and the end are learned. Both may be lists of
      messages instead; then the assistant's turns of the completion are learned.
    - `{"text": text}`; all of it is learned.

    If a record has several of these, the first of this list counts. Other fields are ignored. The learned
    part of a turn is what follows the tokens that the model gets in generation: the conversation before the
    turn, with the header of an answer. Each of these prefixes is tokenized and compared. A template that
    changes earlier turns when one is added is refused.

    A tokenizer that puts `bos_token_id` before each text puts it before texts and prompts. Conversations get
    their marks from the template only.

    Args:
        records: dictionaries, for example `jsonl(path)`.
        tokenizer: any object with `encode(text)`; for conversations also
            `apply_chat_template(messages, tokenize=True, add_generation_prompt=...)`.
        context: the most tokens of an example. `None`: no bound.
        long: what to do with a longer record. "refuse" raises an error; "truncate" drops the tokens at its
            end; "drop" leaves the record out. The numbers of both are in the result.
        mask_prompt: learn only completions and the assistant's turns; otherwise all tokens.
        end_token: the token after a text or completion. "eos": the tokenizer's `eos_token_id`, if it has
            one. `None`: no token.
        fields: other names of fields in the records, such as `{"prompt": "question"}`.

    Returns:
        The examples, which `pack` and `LengthBuckets` take, at 5 bytes a token; and the numbers of records
        that were dropped and truncated.

    Raises:
        ValueError: if a record lacks a field, a completion is empty, a record is too long, or no example is
            left. The error names the record: its file and line, if it comes from `jsonl`.
        TypeError: if the tokenizer lacks a method, or the records are not mappings.

    >>> from purestep.data import Characters
    >>> result = tokenize_records([{"prompt": "ab", "completion": "ba"}], Characters("ab"), end_token=2)
    >>> result.examples[0].tokens.tolist(), list(result.examples[0].mask)
    ([0, 1, 1, 0, 2], [0, 0, 1, 1, 1])
    """
    writer = turns.Writer.of(_CALLER, tokenizer, end_token)
    if context is not None:
        context = checks.integer(_CALLER, "context", context, least=2)
    checks.one_of(_CALLER, "long", long, examples.LONG)
    names = renamed(_CALLER, fields, _FIELDS)
    kept: list[Example] = []
    dropped = truncated = 0
    for where, record in placed(_CALLER, records):
        tokens, mask = _written(writer, where, record, names)
        whole = examples.compact(_CALLER, where, tokens, mask if mask_prompt else [1] * len(mask))
        example = examples.fitted(_CALLER, where, whole, context, long)
        if example is None:
            dropped += 1
        else:
            truncated += example is not whole
            kept.append(example)
    if not kept:
        raise checks.error(
            _CALLER, f"records must give at least one example, got none ({dropped} were too long)"
        )
    return Examples(kept, dropped, truncated)


def _written(
    writer: turns.Writer, where: str, record: Mapping[str, Any], names: dict[str, str]
) -> tuple[list[int], list[int]]:
    messages, prompt, completion, text = (names[name] for name in _FIELDS)
    tools = record.get("tools")
    if messages in record:
        found = turns.messages_of(_CALLER, where, messages, record[messages])
        return writer.conversation(where, messages, found, 0, tools)
    if prompt in record or completion in record:
        first = field_of(_CALLER, where, record, prompt)
        second = field_of(_CALLER, where, record, completion)
        if isinstance(first, str):
            second = text_of(_CALLER, where, record, completion)
            return writer.completion(where, completion, first, second)
        before = turns.messages_of(_CALLER, where, prompt, first)
        after = turns.messages_of(_CALLER, where, completion, second)
        return writer.conversation(where, completion, before + after, len(before), tools)
    if text in record:
        return writer.text(where, text, text_of(_CALLER, where, record, text))
    raise checks.error(
        _CALLER,
        f"{where}: the record must have the field {messages!r}, the fields {prompt!r} and {completion!r}, or "
        f"the field {text!r}, got {shown(record)}",
    )
