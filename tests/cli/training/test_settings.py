"""The settings of `train`: a file, the command line over it, and what a resumed run may change."""

import dataclasses
import tomllib

import pytest

from purestep._loop.config import files
from purestep.cli.training import settings
from purestep.cli.training.settings import HARMLESS, Task, read_arguments, settings_from


def test_arguments_override_the_file_and_sizes_are_merged(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('data = "a.txt"\nseed = 1\ncontext = 9\n[sizes]\nwidth = 8\nname = "b"\n')
    values, switches = read_arguments(
        [
            str(path),
            "--seed",
            "2",
            "--sizes.width=16",
            "--sizes.flag",
            "true",
            "--sizes.name",
            "c",
            "--resume",
        ]
    )
    made = settings_from(values)
    assert (made.config.seed, made.task.context, made.task.data) == (2, 9, "a.txt")
    assert made.sizes == {"width": 16, "name": "c", "flag": True}
    assert switches == {"resume": True, "json": False, "profile": False}


def test_settings_survive_toml():
    made = settings_from(
        {
            "measure": ["drift"],
            "data": 'a "b"\\\x7f\n.txt',
            "prompt": "é\t",
            "b1": 0.5,
            "sizes": {"width": 8, "a b": "c", "x": 1.5},
        }
    )
    assert settings_from(tomllib.loads(files.toml(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("path", "kind"), [("a.jsonl", "jsonl"), ("a.NPY", "tokens"), ("a.bin", "tokens"), ("a", "text")]
)
def test_the_format_goes_by_the_name(path, kind):
    assert Task(data=path).format == kind
    assert Task(data=path, format="text").format == "text"


def test_only_harmless_settings_may_change():
    begun = settings_from({"data": "a.txt"})
    values = begun.to_dict()
    other = {int: 7, float: 0.5, str: "b", bool: False}
    for name, kind in settings.all_types().items():
        plain = settings.kinds.optional(kind)[0]
        choices = settings.kinds.choices(plain)
        if settings.kinds.members(plain):
            other[plain] = list(settings.kinds.members(plain)[:1])
        value = next(each for each in reversed(choices) if each != values[name]) if choices else other[plain]
        needs = {"decay_ratio": {"lr_schedule": "wsd"}, "momentum": {"optimizer": "sgd"}}.get(name, {})
        if name == "max_steps":
            needs = {"warmup_steps": 7}
        if "field" in name or name == "token_dtype":
            needs = {"format": "jsonl" if "field" in name else "tokens"}
        first = settings_from({**values, **needs})
        now = settings_from({**values, **needs, name: value})
        if name in HARMLESS:
            said = settings.refuse_other_settings(first, now)
            assert len(said) == (name != "out"), name
        else:
            with pytest.raises(ValueError, match=f"^train: .*runs/train .*settings: {name} is .*, not "):
                settings.refuse_other_settings(first, now)
    with pytest.raises(ValueError, match=r"^train: .*runs/train .*settings: sizes.width .*8, not None"):
        settings.refuse_other_settings(begun, begun._replace(sizes={"width": 8}))
    assert settings.refuse_other_settings(begun, begun) == []
    assert {*HARMLESS} <= settings.all_types().keys()
    assert not settings.types_of(Task).keys() & settings.TrainConfig.types().keys()
    assert all(field.name in (Task.__doc__ or "") for field in dataclasses.fields(Task))
