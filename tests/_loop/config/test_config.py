"""`TrainConfig`: every field is checked, and read from TOML, JSON and a command line."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re

import pytest

from purestep._loop.config.config import TrainConfig
from tests.refusals import parts

# A valid value of each field that differs from its default, with what else the field needs.
OTHER = {
    "learning_rate": (1e-3, {}),
    "weight_decay": (0.1, {}),
    "warmup_steps": (7, {}),
    "max_steps": (321, {}),
    "batch_size": (5, {}),
    "grad_accumulation_steps": (4, {}),
    "max_grad_norm": (0.0, {}),
    "eval_interval": (11, {}),
    "log_interval": (12, {}),
    "checkpoint_interval": (13, {}),
    "optimizer": ("lion", {}),
    "lr_schedule": ("linear", {}),
    "compile_step": (False, {}),
    "seed": (2**64 - 1, {}),
    "min_lr_ratio": (0.0, {}),
    "decay_ratio": (0.5, {"lr_schedule": "wsd"}),
    "b1": (0.8, {}),
    "b2": (0.95, {}),
    "momentum": (0.5, {"optimizer": "sgd"}),
    "dtype": ("bfloat16", {}),
    "measure": (("drift", "grad_norms"), {}),
    "measure_every": (3, {}),
}


def refusal(make):
    """Return the error of a call that must fail."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    return str(caught.value)


def test_the_defaults_are_those_that_users_expect():
    assert TrainConfig().to_dict() == {
        "learning_rate": 3e-4, "weight_decay": 0.01, "warmup_steps": 100, "max_steps": 1000, "batch_size": 32,
        "grad_accumulation_steps": 1, "max_grad_norm": 1.0, "eval_interval": 100, "log_interval": 10,
        "checkpoint_interval": 500, "optimizer": "adamw", "lr_schedule": "cosine", "compile_step": True,
        "seed": 42, "min_lr_ratio": 0.1, "decay_ratio": None, "b1": None, "b2": None, "momentum": None,
        "dtype": "float32", "measure": [], "measure_every": 10,
    }  # fmt: skip
    assert OTHER.keys() == TrainConfig.types().keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_form_carries_every_field(tmp_path, name):
    value, needs = OTHER[name]
    config = TrainConfig(**{name: value}, **needs)
    assert getattr(config, name) == value != getattr(TrainConfig(), name)
    assert TrainConfig.from_dict(config.to_dict()) == config
    (tmp_path / "c.toml").write_text(config.to_toml())
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    assert TrainConfig.from_toml(tmp_path / "c.toml") == config
    assert TrainConfig.from_json(str(tmp_path / "c.json")) == config
    texts = {**needs, name: ",".join(value) if isinstance(value, tuple) else value}
    arguments = [f"--{key.replace('_', '-')}={each}" for key, each in texts.items()]
    assert TrainConfig.from_arguments(arguments) == config
    dashed = [part for key, each in texts.items() for part in (f"--{key}", str(each))]
    assert TrainConfig.from_arguments(dashed) == config
    assert TrainConfig().replace(**needs, **{name: value}) == config


def test_a_configuration_is_immutable_and_equal_by_value():
    config = TrainConfig(seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.__setattr__("seed", 2)
    assert config == TrainConfig(seed=1) != TrainConfig()
    assert len({config, TrainConfig(seed=1)}) == 1
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert "learning_rate: float = 0.0003" in str(inspect.signature(TrainConfig))
    with pytest.raises(TypeError):
        TrainConfig(1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": "3e-4"}, "learning_rate ... number, got '3e-4'"),
        ({"learning_rate": True}, "learning_rate ... number, got True"),
        ({"learning_rate": 0}, "learning_rate ... 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate ... finite, got nan"),
        ({"learning_rate": 10**400}, "learning_rate ... finite, got 1000"),
        ({"weight_decay": -1e-3}, "weight_decay ... 0, got -0.001"),
        ({"warmup_steps": -1}, "warmup_steps ... 0, got -1"),
        ({"warmup_steps": 1001}, "warmup_steps ... max_steps (1000), got 1001"),
        ({"max_steps": 50}, "warmup_steps ... max_steps (50), got 100"),
        ({"max_steps": 7}, "warmup_steps ... max_steps (7), got 100, the default"),
        ({"max_steps": 0}, "max_steps ... 1, got 0"),
        ({"max_steps": 10.0}, "max_steps ... integer, got 10.0"),
        ({"max_steps": "10"}, "max_steps ... integer, got '10'"),
        ({"max_steps": True}, "max_steps ... integer, got True"),
        ({"max_steps": None}, "max_steps ... integer, got None"),
        ({"max_steps": 2**31}, "max_steps ... 2147483647, got 2147483648"),
        ({"batch_size": 0}, "batch_size ... 1, got 0"),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps ... 1, got 0"),
        ({"max_grad_norm": -1}, "max_grad_norm ... 0, got -1.0"),
        ({"eval_interval": 0}, "eval_interval ... 1, got 0"),
        ({"optimizer": "adamax"}, "optimizer ... adamw, adam, nadamw,"),
        ({"optimizer": 3}, "optimizer ... got 3"),
        ({"lr_schedule": "Cosine"}, "lr_schedule ... cosine, linear, constant, wsd, got 'Cosine'"),
        ({"compile_step": 1}, "compile_step ... True or False, got 1"),
        ({"seed": 2**64}, "seed ... 18446744073709551616, got 18446744073709551616"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio ... 1, got 1.5"),
        ({"b1": 1.0}, "b1 ... 1, got 1.0"),
        ({"dtype": "float64"}, "dtype ... float32, bfloat16, float16, got 'float64'"),
        (
            {"b1": 0.9, "optimizer": "sgd"},
            "b1 ... sgd, ... got 0.9",
        ),
        ({"momentum": 0.9}, "momentum ... adamw, ... got 0.9"),
        ({"decay_ratio": 0.3}, "decay_ratio ... cosine schedule"),
        ({"measure": "grad_norms"}, "measure ... list of names, got 'grad_norms'"),
        ({"measure": ["norms"]}, "measure ... grad_norms, weight_norms, drift, ... curvature, got 'norms'"),
        ({"measure": [3]}, "measure ... got 3"),
        ({"measure": ["drift", "drift"]}, "measure ... once, got 'drift' twice"),
        ({"measure": None}, "measure ... list of names, got None"),
        ({"measure_every": 0}, "measure_every ... 1, got 0"),
        ({"learning_rat": 1}, "no field 'learning_rat'; ... learning_rate?"),
        ({"lr": 1}, "no field 'lr'; ... learning_rate?"),
        ({"clip_norm": 1}, "no field 'clip_norm'; ... max_grad_norm?"),
        ({"beta_2": 1}, "no field 'beta_2'; ... b2?"),
        ({"Max-Steps": 1}, "no field 'Max-Steps'; ... max_steps?"),
        ({"colour": 1}, "no field 'colour'; ... learning_rate, weight_decay,"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name_rule_and_value(tmp_path, values, message):
    said = refusal(lambda: TrainConfig(**values))
    assert said.startswith("TrainConfig: ")
    assert re.search(parts(message), said)
    assert refusal(lambda: TrainConfig.from_dict(values)).startswith("TrainConfig.from_dict: ")
    assert re.search(parts(message), refusal(lambda: TrainConfig.from_dict(values)))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values))
    said = refusal(lambda: TrainConfig.from_json(path))
    assert said.startswith(f"TrainConfig.from_json: {path}: ")
    assert re.search(parts(message), said)


def test_a_name_that_replace_does_not_know_is_refused():
    rule = parts("TrainConfig.replace: ... 'sed'; ... seed?")
    assert re.search(rule, refusal(lambda: TrainConfig().replace(sed=1)))
    assert "mapping" in refusal(lambda: TrainConfig.from_dict([1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_steps = ", "TrainConfig.from_toml: ... TOML: Invalid value"),
        (b"seed = 1\nseed = 2", "TrainConfig.from_toml: ... TOML: Cannot overwrite"),
        (b"seed = 1 # \xff", "UTF-8 text"),
        (b"seed = '1'", "seed ... integer, got '1'"),
        (b"[train]\nseed = 1", "no field 'train'"),
        (b"x = " + b"[" * 10_000, "TOML"),
        (b"#" * 1_000_001, "1,000,000 bytes"),
        (b"seed = " + b"9" * 5000, "TrainConfig.from_toml: ... TOML: ... 4300 digits"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_named(tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    said = refusal(lambda: TrainConfig.from_toml(path))
    assert re.search(parts(message), said)
    assert str(path) in said


def test_a_file_is_read_whatever_its_line_ends_are_and_json_is_read_strictly(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(b"\xef\xbb\xbfseed = 1\r\nbatch_size = 2\r\n")
    assert TrainConfig.from_toml(path) == TrainConfig(seed=1, batch_size=2)
    for content, message in (
        ('{"seed": 1, "seed": 2}', "'seed' twice"),
        ("[1]", "object, got list"),
        ("{", "JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "TrainConfig.from_json: ... JSON: ... 4300 digits"),
        ('{"learning_rate": NaN}', "learning_rate ... finite"),
    ):
        path.write_text(content)
        assert re.search(parts(message), refusal(lambda: TrainConfig.from_json(path)))
    with pytest.raises(FileNotFoundError):
        TrainConfig.from_toml(tmp_path / "absent")
    assert f"file, {tmp_path}" in refusal(lambda: TrainConfig.from_toml(tmp_path))
    for other in (None, 0):
        said = refusal(lambda: TrainConfig.from_json(other))  # noqa: B023
        assert re.search(parts(f"TrainConfig.from_json: path ... got {other}"), said)


def test_arguments_override_a_base_and_the_last_one_wins():
    base = TrainConfig(seed=1, max_steps=200, b1=0.5)
    arguments = ["--seed", "2", "--seed=3", "--b1", "none", "--weight-decay", "0"]
    assert TrainConfig.from_arguments(arguments, base=base) == TrainConfig(
        seed=3, max_steps=200, weight_decay=0.0
    )
    assert TrainConfig.from_arguments([]) == TrainConfig()
    said = refusal(lambda: TrainConfig.from_arguments([], base={"seed": 2}))
    assert re.search(parts("TrainConfig.from_arguments: base ... TrainConfig, got {'seed': 2}"), said)
    assert (
        TrainConfig.from_arguments(["--measure", "none"], base=TrainConfig(measure=["drift"])).measure == ()
    )
    assert TrainConfig.from_arguments(["--measure", "drift, grad_norms"]).measure == ("drift", "grad_norms")
    for no in (
        ["--no-compile-step"],
        ["--no_compile_step"],
        ["--compile-step", "False"],
        ["--compile-step=0"],
    ):
        assert not TrainConfig.from_arguments(no).compile_step
    for yes in (["--compile-step"], ["--compile-step", "true"], ["--compile-step", "--seed", "42"]):
        assert TrainConfig.from_arguments(yes) == TrainConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-step", "3"], "no option 'max_step'; ... max_steps?"),
        (["--max-steps"], "--max-steps ... value"),
        (["--max-steps", "--seed", "1"], "--max-steps ... value"),
        (["--max-steps", "1e3"], "--max-steps ... integer, got '1e3'"),
        (["--learning-rate", "fast"], "--learning-rate ... number, got 'fast'"),
        (["--learning-rate", "nan"], "learning_rate ... finite, got nan"),
        (["--learning-rate", "-1"], "learning_rate ... 0, got -1.0"),
        (["--optimizer", "adamax"], "--optimizer ... adamw,"),
        (["--measure", "norms"], "--measure ... grad_norms, ... got 'norms'"),
        (["--measure="], "--measure ... grad_norms, ... got ''"),
        (["--compile-step=maybe"], "--compile-step ... true ... false, got 'maybe'"),
        (["--no-compile-step=true"], "--no-compile-step ... no value"),
        (["--no-seed"], "no option 'no_seed'; ... seed?"),
        (["seed=1"], "options ... got 'seed=1'"),
        (["-s", "1"], "options ... got '-s'"),
        (["--"], "options ... got '--'"),
        ("--seed=1", "argv ... sequence"),
        (None, "argv ... sequence ... got None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    said = refusal(lambda: TrainConfig.from_arguments(arguments))
    assert said.startswith("TrainConfig.from_arguments: ")
    assert re.search(parts(message), said)
