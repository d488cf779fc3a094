"""Preference records."""

import json

import mlx.core as mx
import numpy as np
import pytest

from purestep.data import jsonl, tokenize_pairs
from purestep.losses import completion_mask, dpo_loss, sequence_logps, shift, token_logps
from tests._data.text.chat import END, EOS, Bytes, turn

RECORDS = [
    {"prompt": "ab", "chosen": "cde", "rejected": "f"},
    {"prompt": "a", "chosen": "b", "rejected": "cd"},
]


def completions(pairs, side):
    """Return the learned targets of each row."""
    targets = np.array(pairs.arrays[side])[:, 1:]
    masks = np.array(pairs.arrays[f"{side}_mask"])
    return [row[mask == 1].tolist() for row, mask in zip(targets, masks, strict=True)]


def test_rows_have_one_length_and_masks_mark_the_completions():
    pairs = tokenize_pairs(RECORDS, Bytes(), padding=7)
    encode = Bytes().encode
    assert pairs.arrays["chosen"].tolist() == [[*encode("abcde"), EOS], [*encode("ab"), EOS, 7, 7, 7]]
    assert pairs.arrays["rejected"].tolist() == [[*encode("abf"), EOS, 7, 7], [*encode("acd"), EOS, 7, 7]]
    assert completions(pairs, "chosen") == [[*encode("cde"), EOS], [*encode("b"), EOS]]
    assert completions(pairs, "rejected") == [[*encode("f"), EOS], [*encode("cd"), EOS]]
    assert mx.array_equal(
        pairs.arrays["chosen_mask"],
        completion_mask(pairs.arrays["chosen"], mx.array([2, 1]), lengths=mx.array([6, 3])),
    )
    wide = tokenize_pairs(RECORDS, Bytes(), multiple=8).arrays
    assert {name: array.shape for name, array in wide.items()} == {
        "chosen": (2, 8),
        "chosen_mask": (2, 7),
        "rejected": (2, 8),
        "rejected_mask": (2, 7),
    }


def test_the_loss_of_a_padded_batch_is_that_of_its_pairs():
    table = mx.random.normal((256, 256), key=mx.random.key(0))

    def scores(arrays, side):
        inputs, targets = shift(arrays[side])
        return sequence_logps(token_logps(table[inputs], targets), arrays[f"{side}_mask"])

    def loss(records):
        arrays = tokenize_pairs(records, Bytes()).arrays
        chosen, rejected = scores(arrays, "chosen"), scores(arrays, "rejected")
        return dpo_loss(chosen, rejected, reference_free=True)[0].value.item()

    assert loss(RECORDS) == pytest.approx((loss(RECORDS[:1]) + loss(RECORDS[1:])) / 2, rel=1e-6)


@pytest.mark.parametrize("form", ["prompt", "text", "conversations"])
def test_conversations_learn_what_follows_the_common_turns(form):
    start = [turn("user", "hi")]
    answers = {"chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "no")]}
    record = {
        "prompt": {"prompt": start, **answers},
        "text": {"prompt": "hi", **answers},
        "conversations": {"prompt": "?", **{side: start + answer for side, answer in answers.items()}},
    }[form]
    pairs = tokenize_pairs([record], Bytes())
    assert completions(pairs, "chosen") == [[*Bytes().encode("yes"), END]]
    assert completions(pairs, "rejected") == [[*Bytes().encode("no"), END]]
    assert Bytes().decode(pairs.arrays["chosen"].tolist()[0]) == "hiyes"


def test_equal_answers_are_learned_and_longer_talks_differ_where_they_part():
    start = [turn("user", "a"), turn("assistant", "b")]
    same = tokenize_pairs([{"chosen": start, "rejected": start}], Bytes())
    assert completions(same, "chosen") == completions(same, "rejected") == [[*Bytes().encode("b"), END]]
    longer = [*start, turn("user", "c"), turn("assistant", "d")]
    other = [*start, turn("user", "e"), turn("assistant", "f")]
    pairs = tokenize_pairs([{"chosen": longer, "rejected": other}], Bytes())
    assert completions(pairs, "chosen") == [[*Bytes().encode("d"), END]]
    assert completions(pairs, "rejected") == [[*Bytes().encode("f"), END]]


def test_long_pairs_are_refused_truncated_or_dropped_together():
    with pytest.raises(ValueError, match=r"^tokenize_pairs: record 0: .*context=4 tokens, got 6; long="):
        tokenize_pairs(RECORDS, Bytes(), context=4)
    dropped = tokenize_pairs(RECORDS, Bytes(), context=4, long="drop")
    assert (dropped.dropped, dropped.truncated, dropped.arrays["chosen"].shape) == (1, 0, (1, 4))
    short = tokenize_pairs(RECORDS, Bytes(), context=4, long="truncate")
    assert (short.dropped, short.truncated) == (0, 1)
    assert completions(short, "chosen") == [[*Bytes().encode("cd")], [*Bytes().encode("b"), EOS]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "the record .*'rejected', got 'prompt', 'chosen'"),
        ({"chosen": "b", "rejected": "c"}, "the record .*'prompt', got 'chosen', 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected .*empty, got ''"),
        ({"prompt": "a", "chosen": "b", "rejected": [turn("assistant", "c")]}, "chosen .*list .*got str"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt .*text, got int"),
        (
            {"chosen": [turn("user", "b")], "rejected": [turn("assistant", "c")]},
            "chosen .*turn of the assistant",
        ),
    ],
)
def test_errors_name_the_record(tmp_path, record, message):
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(RECORDS[0])}\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=f"^tokenize_pairs: .*pairs.jsonl:2: .*{message}"):
        tokenize_pairs(jsonl(tmp_path / "pairs.jsonl"), Bytes())


def test_fields_may_have_other_names_and_bad_arguments_are_refused():
    record = {"question": "a", "better": "b", "worse": "c"}
    fields = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert completions(tokenize_pairs([record], Bytes(), fields=fields), "chosen") == [[108, EOS]]
    with pytest.raises(ValueError, match="^tokenize_pairs: multiple .* 1, got 0"):
        tokenize_pairs(RECORDS, Bytes(), multiple=0)
    with pytest.raises(ValueError, match="^tokenize_pairs: records .*one pair, got none"):
        tokenize_pairs([], Bytes())
