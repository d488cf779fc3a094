"""The finetune demo: adapters that learn, the files, and an interrupted run that ends with the same bits."""

import argparse
import importlib
import json
import sys

import mlx.core as mx
import pytest
from safetensors import safe_open

import purestep as ps
from purestep.demos import finetune as demo
from purestep.demos.models import instructions
from purestep.demos.models.instructions import Bytes, prepared, words_of
from purestep.demos.models.llama import Llama
from purestep.demos.shared import exporting
from purestep.demos.shared.building import built
from purestep.demos.shared.reading import read_text
from tests.demos.runs import check_files, check_resumed, options, state, stop

OTHERS = ("curves.png", "answers.txt", "model", "adapters")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A small model and few instructions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SIZES", {"width": 32, "layers": 1, "heads": 2, "inner": 64})
    for name, value in {"CONTEXT": 16, "BATCH_SIZE": 16, "MEASURED": 500, "TEST": 10}.items():
        monkeypatch.setattr(demo, name, value)


@pytest.fixture
def without_mlx_lm(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", None)


def readable(**sizes):
    """Return a model whose embeddings are large from the start, so that it needs little pretraining."""
    model = Llama(**sizes)
    model.model.embed_tokens.weight = 15 * model.model.embed_tokens.weight
    return model


def loaded(path):
    """Return the base and the adapted model of a run, read from its files."""
    base = built(lambda: Llama(**demo.SIZES), 0)
    base.load_weights(str(path / "model/model.safetensors"))
    return base, ps.adapters.load(path / "adapters", base)


def test_adapters_learn_what_the_base_does_not_know(tmp_path, capsys, monkeypatch, without_mlx_lm):
    monkeypatch.setattr(instructions, "TASKS", {"Agree": lambda word: "yes", "Refuse": lambda word: "no"})
    monkeypatch.setattr(demo, "TASKS", instructions.TASKS)
    monkeypatch.setattr(demo, "Llama", readable)
    monkeypatch.setattr(demo, "ROWS", 24)
    assert demo.run(options(out="run", pretrain=60, steps=60, rank=4)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["exact_before"] <= 0.1
    assert figures["exact_after"] >= 0.9
    assert figures["mlx_lm_difference"] is None
    check_files(tmp_path / "run", *demo.PHASES, others=OTHERS)

    # The share is that of greedy answers, and all of it is in the files.
    text = read_text(None)
    lessons = prepared(text[: len(text) * 9 // 10], words_of(text), (demo.TRAIN, demo.TEST), 8, 0.0, 0)
    for model, name in zip(loaded(tmp_path / "run"), ("before", "after"), strict=True):
        apply, params, _ = ps.functional(model)
        sample = ps.data.sampler(apply, max_tokens=4, temperature=0.0, stop_tokens=[10], compile=False)
        unseen = [each for of_task in lessons.unseen.values() for each in of_task]
        written = sample(params, [Bytes().encode(each.prompt) for each in unseen], mx.random.key(0)).lists()
        right = [bytes(w).decode() == f"{each.answer}\n" for w, each in zip(written, unseen, strict=True)]
        assert sum(right) / len(right) == pytest.approx(figures[f"exact_{name}"])


def test_only_adapters_are_trained_and_saved_and_their_merge_gives_the_same_logits(
    tmp_path, capsys, without_mlx_lm
):
    assert demo.run(options(out="run", pretrain=3, steps=3)) == 0
    figures = json.loads(capsys.readouterr().out)
    with safe_open(tmp_path / "run/adapters/adapters.safetensors", "numpy") as file:
        sizes = {name: file.get_tensor(name).size for name in file.keys()}  # noqa: SIM118
    assert {name.rpartition(".")[2] for name in sizes} == {"lora_a", "lora_b"}
    assert len(sizes) == 2 * 7 * demo.SIZES["layers"]
    assert sum(sizes.values()) == figures["trained_parameters"]
    state_of_adam = ps.tree.size(state(tmp_path / "run", "finetuning")["opt_state"])
    assert 2 * sum(sizes.values()) <= state_of_adam <= 2 * sum(sizes.values()) + 10

    base, adapted = loaded(tmp_path / "run")
    pretrained = state(tmp_path / "run", "pretraining")["params"]
    assert all(map(mx.array_equal, ps.tree.leaves(base.parameters()), ps.tree.leaves(pretrained)))
    tokens = mx.array([Bytes().encode("Swap: word -> ")])
    logits = adapted(tokens)
    assert mx.abs(logits - base(tokens)).max().item() > 1e-3
    assert mx.allclose(ps.adapters.merge(adapted)(tokens), logits, atol=1e-4)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(tmp_path, capsys, without_mlx_lm):
    def run(given):
        return demo.run(given if given.resume else argparse.Namespace(pretrain=4, **vars(given)))

    check_resumed(run, capsys, 6, stop, demo.PHASES)  # in the second phase
    for file in ("adapters/adapters.safetensors", "model/model.safetensors", "answers.txt"):
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_mlx_lm_loads_the_model_its_tokenizer_and_the_adapters(tmp_path, capsys):
    mlx_lm = pytest.importorskip("mlx_lm")
    assert demo.run(options(out="run", pretrain=3, steps=3)) == 0
    assert json.loads(capsys.readouterr().out)["mlx_lm_difference"] < 1e-4
    with ps.rng.scope(mx.random.key(0)):
        model, tokenizer = mlx_lm.load(
            str(tmp_path / "run/model"), adapter_path=str(tmp_path / "run/adapters")
        )
    text = "Spell: né \n\t~ -> …"
    assert tokenizer.encode(text) == Bytes().encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids == {10}
    tokens = mx.array([Bytes().encode("Swap: word -> ")])
    assert mx.allclose(model(tokens), loaded(tmp_path / "run")[1](tokens), atol=1e-4)
    assert importlib.import_module("mlx_lm.models.llama").Model is type(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrain": 0}, "--pretrain must be at least 1, got 0"),
        ({"rank": 0}, "--rank must be from 1 to 32, got 0"),
        ({"rank": 33}, "--rank must be from 1 to 32, got 33"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(ValueError, match=f"^demo: {message}$"):
        demo.run(options(**given))
    assert not list(tmp_path.iterdir())


def test_instructions_to_measure_are_never_learnt():
    learnt, unseen = instructions.instructions(words_of(read_text(None)), 500, 50, seed=1)
    for task, of_task in unseen.items():
        assert len({each.given for each in of_task}) == 50
        assert not {each.given for each in of_task} & {each.given for each in learnt[task]}
        assert all(each.answer == instructions.TASKS[task](each.given) for each in [*of_task, *learnt[task]])
    assert [each.answer for each in instructions.instructions(["word"], 1, 1, 0)[1]["Swap"]] == ["rdwo"]


def test_a_tokenizer_writes_every_byte():
    characters = exporting.tokenizer()["model"]["vocab"]
    assert sorted(characters.values()) == list(range(256))
    assert [characters[each] for each in "aĠĊ"] == [ord("a"), ord(" "), ord("\n")]
