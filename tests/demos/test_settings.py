"""Settings: their ranges, and errors for an invalid `run.json`."""

import json
import re

import pytest

from purestep.demos.shared.session import Settings
from purestep.demos.shared.settings import agreed, damage, out_of_range
from purestep.demos.text import Settings as TextSettings
from purestep.demos.text import fault

SOUND = {
    "demo": "grpo",
    "settings": {"steps": 3, "seed": 0, "compile": True},
    "computed_by": {"mlx": "0.32.4", "device": "cpu", "blas": "bundled"},
}


def test_ranges():
    assert out_of_range(1, 0) is None
    assert out_of_range(2**31 - 1, 2**64 - 1) is None
    assert re.search("^--steps .* 2147483647, got 2147483648$", str(out_of_range(2**31, 0)))
    assert re.search("^--seed .* 0, got -1$", str(out_of_range(1, -1)))
    assert re.search(f"^--seed .* {2**64}, got {2**64}$", str(out_of_range(1, 2**64)))
    assert re.search("^--seed .* 7, got 7$", str(out_of_range(1, 7, seeds=7)))
    assert re.search("^--dtype .* float32, bfloat16, got 'int8'$", str(fault(TextSettings(dtype="int8"))))


def test_sound_facts_give_the_settings():
    assert damage(SOUND, "grpo", Settings) is None
    assert agreed(SOUND, "grpo", Settings, {"steps": 3}, "run") == Settings(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demo": None}, "'demo' .* name .*got nothing"),
        ({"demo": 5}, "'demo' .* name .*got 5"),
        ({"settings": None}, "'settings' .* object, got nothing"),
        ({"settings": [1]}, r"'settings' .* object, got \[1\]"),
        ({"settings": {}}, "'settings' .* steps, seed, compile: \"compile\" .*missing"),
        ({"settings": {**SOUND["settings"], "x": 1}}, '"x" .*unknown'),
        ({"settings": {**SOUND["settings"], "seed": True}}, "'settings.seed' .* integer, got true"),
        ({"settings": {**SOUND["settings"], "steps": 1.0}}, "'settings.steps' .* integer, got 1.0"),
        ({"settings": {**SOUND["settings"], "steps": "9" * 99}}, 'integer, got "9{36}\\.\\.\\.'),
        (
            {"settings": {**SOUND["settings"], "compile": 1}},
            "'settings.compile' .* true or false, got 1",
        ),
        ({"computed_by": "me"}, "'computed_by' .* object of strings, got \"me\""),
        ({"computed_by": {"mlx": 1}}, "'computed_by' .* object of strings.*1"),
    ],
)
def test_odd_facts_are_named(change, message):
    found = damage({**SOUND, **change}, "grpo", Settings)
    assert found is not None
    assert re.search(message, found), found


@pytest.mark.parametrize("facts", [None, [], "text", 5, True, {}])
def test_any_json_is_taken(facts):
    assert damage(json.loads(json.dumps(facts)), "grpo", Settings)


def test_the_text_of_a_text_may_be_null_or_a_string():
    settings = {"steps": 1, "seed": 0, "data": None, "compile": True, "microbatches": 1, "dtype": "float32"}
    for data, sound in ((None, True), ("book.txt", True), (5, False), ({}, False)):
        facts = {**SOUND, "demo": "text", "settings": {**settings, "data": data}}
        assert (damage(facts, "text", TextSettings) is None) is sound


def test_contradictions_name_the_option_as_it_is_typed():
    with pytest.raises(ValueError, match="demo: --seed .*4, .*run .* 0: "):
        agreed(SOUND, "grpo", Settings, {"seed": 4}, "run")
    with pytest.raises(ValueError, match="demo: --no-compile .*run .*without"):
        agreed(SOUND, "grpo", Settings, {"compile": False}, "run")
    with pytest.raises(ValueError, match="demo: run .*grpo, not .*text"):
        agreed(SOUND, "text", TextSettings, {}, "run")
