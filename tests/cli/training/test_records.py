"""The records of `train`: their kind, their tokens and masks, and what is refused."""

import json

import numpy as np
import pytest

from purestep.cli.training import corpus, encoding, facts, records
from purestep.cli.training.settings import Task

CHAT = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "é"},
    {"role": "assistant", "content": "3"},
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path, *rows):
    """Write records to a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def learned(task):
    """Return the tokens to learn of each example of a task, as texts."""
    found = corpus.inspected(task)
    examples = found.examples["data"].examples
    return ["".join(chr(t) for t, m in zip(e.tokens, e.mask, strict=True) if m) for e in examples]


@pytest.mark.parametrize(
    ("record", "options", "name", "fields"),
    [
        ({"text": "a", "id": 3}, {}, "text", {"text": "text"}),
        ({"body": "a"}, {"field": "body"}, "text", {"text": "body"}),
        ({"prompt": "a", "completion": "b", "text": "c"}, {}, "completion",
         {"prompt": "prompt", "completion": "completion"}),
        ({"q": "a", "completion": "b", "messages": []}, {"prompt_field": "q"}, "completion",
         {"prompt": "q", "completion": "completion"}),
        ({"messages": CHAT, "prompt": "a"}, {}, "chat", {"messages": "messages"}),
        ({"talk": CHAT}, {"chat_field": "talk"}, "chat", {"messages": "talk"}),
    ],
)  # fmt: skip
def test_the_settings_or_the_first_record_decide_the_kind(here, record, options, name, fields):
    written(here / "a.jsonl", record)
    kind = records.kind_of(Task(data="a.jsonl", **options))
    assert (kind.name, kind.fields) == (name, fields)


def test_only_answers_and_their_ends_are_learned(here):
    end = chr(256)
    written(here / "chat.jsonl", {"messages": CHAT})
    assert learned(Task(data="chat.jsonl")) == [f"2{end}3{end}"]
    written(here / "pairs.jsonl", {"q": "1+1=", "a": "2"}, {"q": "", "a": "3"})
    names = {"prompt_field": "q", "completion_field": "a"}
    assert learned(Task(data="pairs.jsonl", **names)) == [f"2{end}", f"3{end}"]
    assert learned(Task(data="pairs.jsonl", mask_prompt=False, **names)) == [f"1+1=2{end}", f"3{end}"]


def test_the_whole_conversation_is_in_the_tokens(here):
    written(here / "chat.jsonl", {"messages": CHAT})
    (example,) = corpus.inspected(Task(data="chat.jsonl", context=100)).examples["data"].examples
    said = encoding.TurnBytes().decode(example.tokens)
    assert said == "system: Add.\nuser: 1\nassistant: 2\nuser: é\nassistant: 3\n"
    assert said.startswith(encoding.TurnBytes().decode(records.beginning(example)))
    assert len(records.beginning(example)) == len("system: Add.\nuser: 1\nassistant: ")


def test_every_learned_token_is_a_target_once_an_epoch(here):
    rows = [{"prompt": "p" * (n + 1), "completion": "ab" * (n % 5 + 1)} for n in range(23)]
    written(here / "a.jsonl", *rows)
    found = corpus.inspected(Task(data="a.jsonl")).examples["data"].examples
    source = records.source(found, 4, seed=3)
    targets = np.concatenate([np.array(source.at(step)["targets"]).ravel() for step in range(len(source))])
    kept = targets[targets != records.IGNORED]
    wanted = [token for row in rows for token in [*row["completion"].encode(), 256]]
    assert sorted(kept.tolist()) == sorted(wanted)
    assert records.to_learn(found) == len(wanted)
    shapes = {source.at(step)["inputs"].shape for step in range(len(source))}
    assert len(shapes) <= 4
    longest = max(len(example.tokens) for example in found) - 1
    assert max(shape[1] for shape in shapes) == longest
    assert max(shape[0] * shape[1] for shape in shapes) <= 4 * longest


def test_the_last_records_are_for_validation_and_a_prompt_is_a_turn(here):
    written(here / "a.jsonl", *({"messages": [*CHAT[:2], {"role": "assistant", "content": n * "x"}]}
                                for n in range(1, 11)))  # fmt: skip
    task = Task(data="a.jsonl", validation_fraction=0.2)
    made = corpus.prepared(task, corpus.inspected(task), here, 4, 0, again=False)
    assert made.train_tokens == sum(n + 1 for n in range(1, 9))
    assert made.validation_tokens == 10 + 11
    assert made.decode(made.prompt) == "system: Add.\nuser: 1\nassistant: "
    assert made.encode is not None
    assert made.decode(made.encode("5")) == "user: 5\nassistant: "
    assert (made.vocabulary, made.end) == (257, 256)
    assert made.facts["tokens"] == [facts.tokens(corpus.inspected(task).examples["data"].examples)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"txet": "a"}], {}, ":1 must have the field 'text', got 'txet'; did you mean --field txet?"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completions": "b"}],
            {},
            "data: a.jsonl:2 must have the field 'completion', got 'prompt', 'completions'; "
            "did you mean --completion-field completions?",
        ),
        (
            [{"question": "a", "answer": "b"}],
            {"prompt_field": "question"},
            ":1 must have the field 'completion', got 'question', 'answer'; --completion-field names another",
        ),
        ([{"a": "b"}], {}, "--field, --prompt-field and --completion-field, or --chat-field name others"),
        ([{"messages": CHAT}, {"text": "b"}], {}, ":2 must have the field 'messages', got 'text'"),
        ([{}], {}, "a.jsonl:1 must have the field 'text', got no fields"),
        ([{"text": 3}], {}, "data: a.jsonl:1: text must be a string, got 3"),
        ([{"messages": CHAT[:2]}], {}, ":1: messages must have a turn of the assistant to learn"),
        ([{"messages": "a"}], {}, "data: a.jsonl:1: messages must be a list of messages, got str"),
        ([{"messages": CHAT, "tools": []}], {}, "a.jsonl:1: the chat template must accept the messages"),
        ([{"messages": CHAT}], {"context": 9}, ":1: the record must have at most context=9 tokens"),
        (
            [{"messages": CHAT}],
            {"context": 9, "long": "drop"},
            "data: records must give at least one example, got none (1 were too long)",
        ),
        ([{"messages": CHAT}], {"vocabulary": 200}, "tokens in [0, 200), the vocabulary, got 256"),
        ([{"prompt": "a", "completion": ""}], {}, "data: a.jsonl:1: completion must not be empty, got ''"),
        ([{"messages": CHAT}], {"tokenizer": "characters"}, "must be bytes or module:name for prompts"),
        ([{"text": "a"}], {"tokenizer": "byte"}, "got 'byte'; did you mean bytes?"),
        ([{"text": "a"}], {"long": "drop"}, "prompts with completions or conversations, a.jsonl has none"),
        ([{"text": "a"}], {"mask_prompt": False}, "mask_prompt needs prompts with completions or conv"),
    ],
)
def test_a_record_of_another_kind_is_refused_with_its_line(here, rows, options, message):
    written(here / "a.jsonl", *rows)
    with pytest.raises(ValueError, match="^train: ") as caught:
        corpus.inspected(Task(data="a.jsonl", **options))
    assert message in str(caught.value)
    assert str(caught.value).count("train: ") == 1


def test_one_record_is_too_few_without_a_validation_file(here):
    written(here / "a.jsonl", {"messages": CHAT})
    task = Task(data="a.jsonl")
    with pytest.raises(ValueError, match="at least 2 records, one of them for validation, got 1"):
        corpus.prepared(task, corpus.inspected(task), here, 4, 0, again=False)
    task = Task(data="a.jsonl", validation="a.jsonl")
    made = corpus.prepared(task, corpus.inspected(task), here, 4, 0, again=False)
    assert made.train_tokens == made.validation_tokens == 4


def test_long_records_are_told(here):
    written(here / "a.jsonl", *({"prompt": "p", "completion": n * "x"} for n in range(1, 11)))
    for long, count, said in (("drop", 6, "left out"), ("truncate", 10, "truncated")):
        task = Task(data="a.jsonl", context=8, long=long)
        found = corpus.inspected(task)
        assert len(found.examples["data"].examples) == count
        made = corpus.prepared(task, found, here, 4, 0, again=False)
        assert made.notes == [f"4 records of data are longer than context=8: {said}"]
