"""Records as examples with masks."""

import json
import math

import pytest

from purestep.data import Characters, jsonl, pack, tokenize_pairs, tokenize_records
from tests._data.text.chat import END, EOS, Bytes, Forgetful, learned, turn

TALK = [
    turn("system", "be"),
    turn("user", "hi"),
    turn("assistant", "yo"),
    turn("user", "a"),
    turn("assistant", "b"),
]


def written(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_texts_are_learned_whole_and_prompts_are_masked():
    records = [
        {"text": "ab", "id": 1},
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "", "completion": "xy"},
    ]
    text, answer, free = tokenize_records(records, Bytes()).examples
    assert [*text.tokens] == learned(text) == [107, 108, EOS]
    assert [*answer.tokens] == [107, 108, 109, 110, EOS]
    assert learned(answer) == [109, 110, EOS]
    assert learned(free) == [*free.tokens]
    for end, tail in ((None, []), (9, [9])):
        one, two, _ = tokenize_records(records, Bytes(), end_token=end).examples
        assert ([*one.tokens], learned(two)) == ([107, 108, *tail], [109, 110, *tail])
    answer = tokenize_records(records, Bytes(), mask_prompt=False).examples[1]
    assert learned(answer) == [*answer.tokens]
    plain = tokenize_records([{"prompt": "ab", "completion": "b"}], Characters("ab")).examples[0]
    assert ([*plain.tokens], [*plain.mask]) == ([0, 1, 1], [0, 0, 1])


def test_only_the_turns_of_the_assistant_are_learned():
    example = tokenize_records([{"messages": TALK}], Bytes()).examples[0]
    assert [*example.tokens] == Bytes().apply_chat_template(TALK)
    assert learned(example) == [*Bytes().encode("yo"), END, *Bytes().encode("b"), END]
    split = tokenize_records([{"prompt": TALK[:4], "completion": TALK[4:]}], Bytes()).examples[0]
    assert [*split.tokens] == [*example.tokens]
    assert learned(split) == [*Bytes().encode("b"), END]
    more = tokenize_records([{"messages": [*TALK, turn("user", "c")], "tools": [1]}], Bytes()).examples[0]
    assert learned(more) == learned(example)
    assert Bytes().decode(more.tokens).startswith("[1]")


def test_the_prompt_has_the_tokens_that_it_has_in_generation():
    class Pairs(Bytes):
        """Two letters are one token, and so is the last of an odd number."""

        def encode(self, text):
            return [int.from_bytes(text[n : n + 2].encode(), "big") for n in range(0, len(text), 2)]

    for prompt, completion, after in (("abcd", "ef", ["ef"]), ("abc", "de", ["de"])):
        example = tokenize_records([{"prompt": prompt, "completion": completion}], Pairs()).examples[0]
        assert [*example.tokens] == [*Pairs().encode(prompt), *Pairs().encode(after[0]), EOS]
        assert learned(example) == [*Pairs().encode(after[0]), EOS]


def test_a_template_that_changes_earlier_turns_is_refused():
    with pytest.raises(
        ValueError, match=r"^tokenize_records: record 0: the chat template .*turn 2 of messages .*position 8"
    ):
        tokenize_records([{"messages": TALK}], Forgetful())
    tokenize_records([{"messages": TALK[:3]}], Forgetful())  # one answer, which is not changed


def test_long_records_are_refused_truncated_or_dropped():
    records = [{"prompt": "ab", "completion": "cdefgh"}, {"text": "ab"}]
    with pytest.raises(ValueError, match=r"^tokenize_records: record 0: .*context=5 tokens, got 9; .*long="):
        tokenize_records(records, Bytes(), context=5)
    short = tokenize_records(records, Bytes(), context=5, long="truncate")
    assert [[*each.tokens] for each in short.examples] == [[107, 108, 109, 110, 111], [107, 108, EOS]]
    assert (short.dropped, short.truncated) == (0, 1)
    kept = tokenize_records(records, Bytes(), context=5, long="drop")
    assert (len(kept.examples), kept.dropped, kept.truncated) == (1, 1, 0)
    assert tokenize_records(records, Bytes(), context=9).truncated == 0
    with pytest.raises(
        ValueError, match=r"^tokenize_records: record 0: the prompt .*context=2 .*9 tokens .*first 2"
    ):
        tokenize_records(records, Bytes(), context=2, long="truncate")
    with pytest.raises(
        ValueError, match=r"^tokenize_records: records .*one example, got none \(2 were too long\)"
    ):
        tokenize_records(records, Bytes(), context=2, long="drop")


def test_packed_records_learn_their_completions():
    records = [{"prompt": "ab", "completion": "cd"}, {"messages": TALK}, {"text": "xyz"}]
    examples = tokenize_records(records, Bytes()).examples
    arrays = pack(examples, 24).arrays
    targets = zip(arrays["targets"].flatten().tolist(), arrays["weights"].flatten().tolist(), strict=True)
    wanted = [
        token
        for each in examples
        for token, kept in list(zip(each.tokens, each.mask, strict=True))[1:]
        if kept
    ]
    assert sorted(target for target, weight in targets if weight) == sorted(wanted)


def test_lines_are_read_again_and_blank_ones_skipped(tmp_path):
    path = written(tmp_path / "data.jsonl", {"text": "a"}, "", {"text": "b\u2028c"})
    records = jsonl(path)
    assert [r["text"] for r in records] == [r["text"] for r in records] == ["a", "b\u2028c"]
    assert len(tokenize_records(records, Bytes()).examples) == 2
    with pytest.raises(FileNotFoundError):
        jsonl(tmp_path / "absent")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"jsonl: .*data.jsonl:2: the line .*JSON object, got '.*\(Expecting"),
        ("[1]", r"jsonl: .*data.jsonl:2: the line .*JSON object, got '\[1\]'"),
        (b'{"text": "\xff"}'.decode("latin1"), "tokenize_records"),
        ({"words": "a"}, r".*data.jsonl:2: the record .* 'messages', .* got 'words'"),
        ({}, r".*data.jsonl:2: the record .* got no fields"),
        ({"prompt": "a"}, r".*data.jsonl:2: the record .*'completion', got 'prompt'"),
        ({"completion": "a"}, r".*data.jsonl:2: the record .*'prompt', got 'completion'"),
        ({"prompt": "a", "completion": ""}, r".*data.jsonl:2: completion .*empty, got ''"),
        ({"prompt": "a", "completion": None}, r".*:2: completion .* text, got NoneType"),
        ({"prompt": 1, "completion": "a"}, r".*:2: prompt .*list .*got int"),
        ({"text": ""}, r".*data.jsonl:2: text .*empty, got ''"),
        ({"text": 3}, r".*data.jsonl:2: text .* text, got int"),
        ({"messages": []}, r".*:2: messages .*list .*got no messages"),
        ({"messages": "hi"}, r".*:2: messages .*list .*got str"),
        ({"messages": ["hi"]}, r".*:2: message 0 of messages .* role .*content, got 'hi'"),
        ({"messages": [{"role": "user"}]}, r".*:2: message 0 of messages .* content, got \{'role': 'user'\}"),
        ({"messages": TALK[:2]}, r".*:2: messages .*turn of the assistant"),
        ({"messages": TALK[2:]}, r".*:2: messages .*begin .*user .*system"),
        ({"messages": [TALK[1], turn("assistant", "")]}, r".*:2: turn 1 of messages .*empty"),
        (
            {"messages": [turn("judge", "a"), *TALK]},
            r".*:2: the chat template .*KeyError: 'judge'",
        ),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, line, message):
    path = written(tmp_path / "data.jsonl", {"text": "a"}, line)
    if message == "tokenize_records":  # a line that is not UTF-8
        path.write_bytes(path.read_text().encode("latin1"))
        message = r"jsonl: .*data.jsonl:2: the line .* UTF-8, got byte 0xff in column 11"
    with pytest.raises(ValueError, match=f"^(tokenize_records: )?{message}"):
        tokenize_records(jsonl(path), Bytes())


class Odd(Bytes):
    """A tokenizer that returns what it is told."""

    def __init__(self, tokens, eos=5):
        self.tokens, self.eos_token_id = tokens, eos

    def encode(self, text):
        if isinstance(self.tokens, Exception):
            raise self.tokens
        return self.tokens if text else []


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Odd([1, -1]), "record 0: the tokenizer's output .*, got -1 at position 1"),
        (Odd([1, 2.5]), "record 0: the tokenizer's output .*, got 2.5 at position 1"),
        (Odd([2**31]), "record 0: the tokenizer's output .*, got 2147483648"),
        (Odd([[1, 2]]), r"record 0: the tokenizer's output .*, got \[1, 2\]"),
        (Odd(None), "record 0: the tokenizer .*got TypeError"),
        (Odd(KeyError("a")), "record 0: the tokenizer .*got KeyError: 'a'"),
        (Odd([1], eos=[2, 3]), r"eos_token_id .*integer, got \[2, 3\]"),
        (Odd([1], eos=None), "record 0: the record .*token to learn .*got 1"),
    ],
)
@pytest.mark.parametrize("tokenize", [tokenize_records, tokenize_pairs])
def test_errors_of_a_tokenizer_name_the_record(tokenizer, message, tokenize):
    record = {"text": "ab"}
    if tokenize is tokenize_pairs:
        record = {"prompt": "", "chosen": "b", "rejected": "c"}
    with pytest.raises((ValueError, TypeError), match=f"^{tokenize.__name__}: {message}"):
        tokenize([record], tokenizer)


def test_lines_that_python_cannot_read_are_refused_with_their_place(tmp_path):
    path = tmp_path / "data.jsonl"
    for line, message in (
        (b'{"a": ' + b"9" * 5000 + b"}", "jsonl: .*data.jsonl:3: the line .*JSON .*Python"),
        (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "jsonl: .*data.jsonl:3: .* nested so deeply"),
        ('{"a": 1}'.encode("utf-16"), "jsonl: .*data.jsonl:3: the line .* UTF-8, got byte 0xff"),
        (b'{"a": 1}{"b": 2}', "jsonl: .*data.jsonl:3: the line .* a JSON object"),
    ):
        path.write_bytes(b'\xef\xbb\xbf{"a": NaN}\r\n\r\n' + line + b'\r\n{"a": "' + b"x" * 10**6 + b'"}')
        records = iter(jsonl(path))
        assert math.isnan(next(records)["a"])
        with pytest.raises(ValueError, match=f"^{message}"):
            next(records)
    path.write_bytes(b'\xef\xbb\xbf\r\n{"a": "' + b"x" * 10**6 + b'"}')
    assert [len(record["a"]) for record in jsonl(path)] == [10**6]
    path.write_bytes(b'{"text": "ok"}\n{"text": "\\ud800"}')
    with pytest.raises(ValueError, match=r"^tokenize_records: .*data.jsonl:2: the tokenizer .*got Unicode"):
        tokenize_records(jsonl(path), Bytes())


def test_a_template_without_a_generation_prompt_learns_the_header_of_the_answer():
    """In generation the model gets no header from such a template, so it must write it."""

    class Plain(Bytes):
        def apply_chat_template(self, messages, *, tokenize=True, add_generation_prompt=False, tools=None):
            return super().apply_chat_template(messages)

    example = tokenize_records([{"messages": TALK[:3]}], Plain()).examples[0]
    assert learned(example) == [3, *Bytes().encode("yo"), END]


def test_fields_may_have_other_names():
    fields = {"prompt": "question", "completion": "answer"}
    record = {"question": "a", "answer": "b", "text": "ignored"}
    assert learned(tokenize_records([record], Bytes(), fields=fields).examples[0]) == [108, EOS]
    with pytest.raises(ValueError, match="^tokenize_records: record 0: .*'answer', got 'question'"):
        tokenize_records([{"question": "a"}], Bytes(), fields=fields)
    with pytest.raises(
        ValueError, match="^tokenize_records: fields .* messages, prompt, completion, text, got 'answer'"
    ):
        tokenize_records([record], Bytes(), fields={"answer": "completion"})


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="^tokenize_records: records .*iterable .*got dict"):
        tokenize_records({"text": "a"}, Bytes())
    with pytest.raises(TypeError, match="^tokenize_records: record 0: .* mapping, got str"):
        tokenize_records(["a"], Bytes())
    with pytest.raises(ValueError, match="^tokenize_records: records .*one example, got none"):
        tokenize_records([], Bytes())
    with pytest.raises(
        TypeError, match="^tokenize_records: record 0: tokenizer .* apply_chat_template .*Characters"
    ):
        tokenize_records([{"messages": TALK}], Characters("ab"))
    with pytest.raises(ValueError, match='^tokenize_records: end_token .*"eos" or None, got .end'):
        tokenize_records([{"text": "a"}], Bytes(), end_token="end")
    with pytest.raises(ValueError, match="^tokenize_records: long .* refuse, truncate, drop, got 'split'"):
        tokenize_records([{"text": "a"}], Bytes(), long="split")


@pytest.fixture(scope="module")
def hugging_face():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = "<s> </s> <user> <assistant> <end> be hi yo a b".split()
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }} {% for message in messages %}<{{ message.role }}> {{ message.content }} <end> "
        "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return tokenizer


def test_a_tokenizer_of_hugging_face(hugging_face):
    pytest.importorskip("jinja2")
    wrapper = pytest.importorskip("mlx_lm.tokenizer_utils").TokenizerWrapper(hugging_face)
    records = [
        {
            "messages": [
                turn("user", "hi"),
                turn("assistant", "yo"),
                turn("user", "a"),
                turn("assistant", "b"),
            ]
        },
        {"prompt": "hi", "completion": "yo"},
        {"text": "hi yo"},
    ]
    for tokenizer in (hugging_face, wrapper):
        chat, answer, text = tokenize_records(records, tokenizer).examples
        assert [*chat.tokens] == [0, 2, 6, 4, 3, 7, 4, 2, 8, 4, 3, 9, 4]
        assert learned(chat) == [7, 4, 9, 4]
        assert [*text.tokens] == [0, 6, 7, 1]
        assert learned(answer)[-1] == 1
        assert answer.tokens[0] == 0
