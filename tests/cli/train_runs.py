"""Runs of the command `train` in a directory with a text and a module of the user's."""

import json
import sys
from pathlib import Path

import numpy as np

import purestep as ps
from purestep.cli import train

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
QUICK = (
    *(
        "--data",
        "text.txt",
        "--context",
        "8",
        "--batch-size",
        "4",
        "--warmup-steps",
        "2",
        "--sample-tokens",
        "3",
    ),
    *("--sizes.width", "12", "--sizes.heads", "2", "--sizes.layers", "1", "--sizes.buckets", "64"),
    *("--eval-interval", "4", "--log-interval", "2", "--validation-batches", "2", "--no-compile-step"),
)
USERS = """
import mlx.core as mx, mlx.nn as nn, purestep as ps

def build(config, data):
    embedding = nn.Embedding(data.vocabulary, data.sizes.get("width", 8))
    head = nn.Linear(embedding.weight.shape[1], data.vocabulary)
    apply, params, _ = ps.functional(nn.Sequential(embedding, head))
    def loss_fn(params, batch, rng):
        logits = apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)
    return loss_fn, params, apply

def broken(config, data):
    _, params, apply = build(config, data)
    def loss_fn(params, batch, rng):
        return unknown
    return loss_fn, params

def infinite(config, data):
    loss_fn, params, _ = build(config, data)
    return lambda params, batch, rng: loss_fn(params, batch, rng) * mx.array(float("nan")), params

def failing(config, data):
    raise RuntimeError("no weights")

def three(config, data):
    return 3

shift = 0

class Turns:
    vocab_size = 128
    def encode(self, text):
        return [ord(letter) + shift for letter in text]
    def decode(self, tokens):
        return "".join(map(chr, tokens))
    def apply_chat_template(self, messages, tokenize=True, add_generation_prompt=False):
        said = "".join(f"{each['role']}:{each['content']};" for each in messages)
        return self.encode(said + "assistant:" * add_generation_prompt)

def turns():
    return Turns()

made = Turns()

class Raising(Turns):
    def encode(self, text):
        return {}[text]

raising = Raising()

class Negative(Turns):
    def encode(self, text):
        return [-1]

negative = Negative()

class speechless:
    vocab_size = 128
    encode = Turns.encode

class Tokenizer:
    vocab_size = 128
    def encode(self, text):
        return [ord(letter) % 100 for letter in text]
    def decode(self, tokens):
        return "".join(map(chr, tokens))
"""


def prepared(directory, monkeypatch):
    """Enter a directory with a text and a module, without a restart for OpenBLAS; leave it at the end."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PURESTEP_BLAS", "bundled")
    monkeypatch.syspath_prepend(str(directory))
    (directory / "text.txt").write_text(TEXT)
    (directory / "users.py").write_text(USERS)
    yield directory
    sys.modules.pop("users", None)


def command(capsys, *arguments):
    """Run the command; return its status, its output and its errors."""
    code = train.main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err.strip()


def result(capsys, *arguments):
    """Run a command that must succeed; return its figures."""
    code, out, err = command(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def state_of(path):
    """Return the arrays of the newest checkpoint of a run, by path."""
    restored, record = ps.checkpoint.Checkpointer(Path(path) / "checkpoints").restore()
    return {name: np.array(leaf) for name, leaf in ps.tree.items(restored)}, record


def rows_of(path):
    """Return the rows of figures, without times and rates."""
    rows = [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def same(first, second):
    """Tell whether two runs have the same newest state, bit for bit."""
    one, other = state_of(first)[0], state_of(second)[0]
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
