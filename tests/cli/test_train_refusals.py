"""What the command `train` refuses."""

import numpy as np
import pytest

from tests.cli.train_runs import command, prepared


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in a directory with a text and a module."""
    yield from prepared(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data must name a file to learn, got nothing"),
        (["absent.toml"], "No such file or directory: 'absent.toml'"),
        (["--data", "absent"], "No such file or directory: 'absent'"),
        (["--data", "."], "data must be a file, . is a directory"),
        (["--data", "empty"], "data must not be empty, empty is"),
        (["--data", "noise"], "noise must be UTF-8, got byte 0xff at position 1"),
        (["--data", "short"], "at least 2112 tokens to learn for batch_size=32 windows of context=64, got 3"),
        (["--data", "bad.jsonl"], ":2 must have the field 'text', got 'txet'; did you mean --field txet?"),
        (["--data", "worse.jsonl"], "data: worse.jsonl:1: the line must be a JSON object, got '{' ("),
        (["--data", "tokens.bin"], "token_dtype must be given for a file without a description"),
        (["--data", "odd.bin", "--token-dtype", "uint16"], "odd.bin must hold whole uint16 tokens"),
        (["--data", "tokens.npy", "--vocabulary", "40"], "tokens in [0, 40), the vocabulary, got 49"),
        (["--data", "tokens.npy", "--prompt", "a"], "prompt needs a tokenizer: a token file has none"),
        (["--data", "text.txt", "--validation", "other"], "no characters but those of data, other has '!Z'"),
        (["--data", "text.txt", "--prompt", "Z"], "prompt must consist of characters of the vocab"),
        (["--data", "text.txt", "--model", "gpt"], "must be one of transformer, or module:function"),
        (["--data", "text.txt", "--model", "absent:build"], "importing absent failed (ModuleNotFoundError"),
        (["--data", "text.txt", "--model", "users:absent"], "model: users has no absent"),
        (["--data", "text.txt", "--model", "users:failing"], "(RuntimeError: no weights, users.py line 24)"),
        (["--data", "text.txt", "--model", "users:three"], "must return (loss_fn, params) or (loss"),
        (["--data", "text.txt", "--tokenizer", "users:three"], "tokenizer: users:three failed (TypeError"),
        (["--data", "text.txt", "--sizes.widht", "8"], "there is no size 'widht'; did you mean width?"),
        (["--data", "text.txt", "--sizes.width", "50"], "must be a multiple of 2 * heads, 6, got 50"),
        (["--data", "text.txt", "--sizes.width"], "--sizes.width needs a value"),
        (["--data", "text.txt", "--contxt", "8"], "there is no option 'contxt'; did you mean context?"),
        (["--data", "text.txt", "--max-steps", "9"], "warmup_steps must be at most max_steps (9), got 100"),
        (["--data", "text.txt", "--context", "0"], "context must be at least 1, got 0"),
        (["--data", "text.txt", "--validation-fraction", "1"], "must be less than 1, got 1.0"),
        (["--data", "text.txt", "--out", "short"], "--out short cannot be written: File exists"),
        (["--data", "text.txt", "--resume"], "--resume found no run in runs/train: there is no config.toml"),
        (["wrong.toml"], "wrong.toml: there is no setting 'learning_rte'; did you mean learning_rate?"),
        (["broken.toml"], "broken.toml must be TOML: "),
        (["typed.toml"], "seed must be an integer, got '1'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_plain_line_and_leaves_nothing(capsys, here, arguments, message):
    (here / "empty").touch()
    (here / "noise").write_bytes(b"a\xff" * 100)
    (here / "short").write_text("short")
    (here / "other").write_text("Z!")
    (here / "bad.jsonl").write_text('{"text": "a"}\n{"txet": "b"}\n')
    (here / "worse.jsonl").write_text("{")
    (here / "wrong.toml").write_text("learning_rte = 1")
    (here / "broken.toml").write_text("seed = ")
    (here / "typed.toml").write_text('data = "text.txt"\nseed = "1"')
    np.save("tokens.npy", np.arange(4000, dtype=np.uint16) % 50)
    (np.arange(4000, dtype=np.uint16) % 50).tofile("tokens.bin")
    (here / "odd.bin").write_bytes(b"abc" * 101)
    before = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("train: ")
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before
