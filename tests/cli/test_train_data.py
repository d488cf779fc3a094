"""The command `train` on texts, tokens and records, with tokenizers of all kinds."""

import json
import shutil
import sys

import numpy as np
import pytest

from tests.cli.train_runs import QUICK, TEXT, command, prepared, result, same, state_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module."""
    yield from prepared(tmp_path, monkeypatch)


def chat(here, count=30):
    """Write conversations, of which the answers say the question backwards."""
    turns = [[("user", f"say {n}"), ("assistant", f"{n} yas"[::-1])] for n in range(count)]
    rows = [{"talk": [{"role": role, "content": said} for role, said in each]} for each in turns]
    (here / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("arguments", "vocabulary"),
    [
        (["--data", "records.jsonl"], None),
        (["--data", "records.jsonl", "--tokenizer", "bytes", "--prompt", "fox"], 256),
        (["--data", "text.txt", "--tokenizer", "users:Tokenizer", "--validation", "text.txt"], 128),
        (["--data", "tokens.npy", "--vocabulary", "60"], 60),
    ],
)
def test_every_kind_of_data_trains(capsys, here, arguments, vocabulary):
    (here / "records.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in TEXT.split(". "))
    )
    np.save("tokens.npy", np.arange(4000, dtype=np.uint16) % 50)
    found = result(capsys, *QUICK, *arguments, "--max-steps", "3", "--temperature", "0", "--out", "run")
    embedding = state_of("run")[0]["params.embedding.weight"]
    assert embedding.shape[0] == (vocabulary or len(set(TEXT)))  # a record ends with a newline, not with ". "
    assert found["sample"].startswith("fox" if "--prompt" in arguments else "")
    assert np.isfinite(found["validation_loss"])


def test_conversations_train_and_resume_bit_for_bit_and_a_prompt_is_answered(capsys, here):
    chat(here)
    base = [*QUICK, "--data", "chat.jsonl", "--chat-field", "talk", "--context", "40", "--prompt", "say 3"]
    base += ["--learning-rate", "0.03", "--long", "truncate"]
    whole = result(capsys, *base, "--max-steps", "40", "--out", "whole", "--sample-tokens", "30")
    assert whole["validation_loss"] < 3.0  # log(257) = 5.5 for an untrained model
    assert whole["sample"].startswith("user: say 3\nassistant: ")
    result(capsys, *base, "--max-steps", "40", "--checkpoint-interval", "5", "--out", "parts", "--keep", "9")
    for step in range(25, 41):
        shutil.rmtree(here / f"parts/checkpoints/step_{step:08}", ignore_errors=True)
    assert state_of("parts")[1].step == 24
    result(capsys, "--resume", "--out", "parts")
    assert same("whole", "parts")
    trained = state_of("whole")[0]
    assert trained["params.embedding.weight"].shape == (257, 12)


def test_a_tokenizer_that_changed_is_refused_in_a_resumed_run(capsys, here):
    chat(here)
    base = [*QUICK, "--data", "chat.jsonl", "--chat-field", "talk", "--context", "40", "--max-steps", "3"]
    result(capsys, *base, "--tokenizer", "users:turns", "--out", "run")
    assert "has made all its 3 steps" in command(capsys, "--resume", "--out", "run")[1]
    vars(sys.modules["users"])["shift"] = 1
    code, _, err = command(capsys, "--resume", "--out", "run", "--max-steps", "4")
    assert (code, err) == (2, "train: tokenizer must give the tokens that the run began with: it has changed")


def test_a_tokenizer_is_an_object_or_a_function_and_its_errors_are_one_line(capsys, here):
    np.save("tokens.npy", np.arange(4000, dtype=np.uint16) % 50 + 40)
    base = [*QUICK, "--max-steps", "3"]
    found = result(capsys, *base, "--data", "tokens.npy", "--tokenizer", "users:made", "--prompt", "AB",
                   "--out", "run")  # fmt: skip
    assert found["sample"].startswith("AB")
    for name, message in (
        ("users:raising", "tokenizer: users:raising failed (KeyError: 'the quick"),
        ("users:speechless", "tokenizer must have a method decode to write samples, users:speechless made"),
        ("users:mad", "tokenizer: users has no mad; did you mean made?"),
        ("users:negative", "tokenizer: users:negative: tokens must fit uint16, got -1 at position 0"),
    ):
        code, _, err = command(capsys, *base, "--data", "text.txt", "--tokenizer", name, "--out", "wrong")
        assert code == 2
        assert err.startswith(f"train: {message}")
        assert err.count("train: ") == 1
        assert len(err) < 400
        assert not (here / "wrong").exists()
