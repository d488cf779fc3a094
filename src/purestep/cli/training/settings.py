"""The settings of `train`: a `TrainConfig`, and what to train on what data."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from purestep._core import checks
from purestep._loop.config import arguments, files, kinds
from purestep._loop.config.config import TrainConfig, known_fields_only, relabelled

CALLER = "train"
SIZES = "sizes"
STORED = "config.toml"
SWITCHES = {"resume": bool, "json": bool, "profile": bool}
# Another value of these does not change the steps made so far, so a run may be resumed with it. The content
# of the data files is compared by checksum.
HARMLESS = frozenset(
    "data validation max_steps eval_interval log_interval checkpoint_interval compile_step keep out "
    "measure measure_every prompt sample_tokens sample_interval temperature validation_batches".split()
)
_NAMES = ("field", "prompt_field", "completion_field", "chat_field")
_LEAST = {"context": 1, "vocabulary": 1, "validation_batches": 1, "keep": 1, "sample_interval": 1}
_LEAST |= {"sample_tokens": 0}


@known_fields_only
@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, on what data, and what is written.

    Attributes:
        data: the file to learn.
        model: `transformer`, or `module:function` of one's own.
        format: of the data; `auto` goes by the name: .jsonl, .bin and .npy (tokens), otherwise text.
        field: the field of a JSONL record that holds its text. Without a name of a field, the first record
            decides: `messages`, `prompt` and `completion`, or `text`.
        prompt_field, completion_field: the fields of a JSONL record with a prompt and its completion.
        chat_field: the field of a JSONL record with the messages of a conversation.
        mask_prompt: learn only completions and the assistant's turns.
        long: of records with more than `context` tokens.
        tokenizer: `characters`, `bytes`, or `module:name` of one's own; `None` is characters, and bytes for
            prompts and conversations.
        token_dtype: of a raw token file without a description.
        vocabulary: the number of tokens; `None` counts them.
        context: the tokens of a window.
        remat: the layers whose activations are recomputed for the gradient, such as `blocks.*`.
        validation: a second file, in the format of the first; `None` splits the first one.
        validation_fraction: the part at the end of the data that is not trained on.
        validation_batches: the most batches of an evaluation; `None` is all.
        sample_tokens: the tokens to write as a sample; 0 writes none.
        sample_interval: the steps between samples; `None` writes one at the end.
        prompt: the text before a sample; `None` is the start of the validation data.
        temperature: of samples; 0 takes the likeliest token.
        keep: the number of checkpoints to keep, beside the best.
        out: the directory of the run.
    """

    data: str = ""
    model: str = "transformer"
    format: Literal["auto", "text", "tokens", "jsonl"] = "auto"
    field: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    chat_field: str | None = None
    mask_prompt: bool = True
    long: Literal["refuse", "truncate", "drop"] = "refuse"
    tokenizer: str | None = None
    token_dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] | None = None
    vocabulary: int | None = None
    context: int = 64
    remat: str | None = None
    validation: str | None = None
    validation_fraction: float = 0.1
    validation_batches: int | None = None
    sample_tokens: int = 200
    sample_interval: int | None = None
    prompt: str | None = None
    temperature: float = 0.8
    keep: int = 3
    out: str = "runs/train"

    def __post_init__(self) -> None:
        for name, kind in types_of(Task).items():
            value = kinds.checked(CALLER, name, getattr(self, name), kind)
            if value is not None and name in _LEAST:
                checks.integer(CALLER, name, value, least=_LEAST[name])
            object.__setattr__(self, name, value)
        if not self.data:
            raise checks.error(CALLER, "data must name a file to learn, got nothing")
        if not self.out:
            raise checks.error(CALLER, "out must name a directory, got nothing")
        checks.number(CALLER, "validation_fraction", self.validation_fraction, above=0, below=1)
        checks.number(CALLER, "temperature", self.temperature, least=0)
        if self.format == "auto":
            ending = Path(self.data).suffix.lower()
            kind = {".jsonl": "jsonl", ".bin": "tokens", ".npy": "tokens"}.get(ending, "text")
            object.__setattr__(self, "format", kind)
        for name in (*_NAMES, "tokenizer", "validation", "prompt", "remat"):
            if getattr(self, name) == "":
                raise checks.error(CALLER, f"{name} must not be empty, got ''")
        for names, format_ in ((_NAMES, "jsonl"), (("token_dtype",), "tokens")):
            for name in names:
                if getattr(self, name) is not None and self.format != format_:
                    raise checks.error(CALLER, f"{name} needs format={format_}, got format={self.format}")
        pair = self.prompt_field or self.completion_field
        if sum(each is not None for each in (self.field, pair, self.chat_field)) > 1:
            raise checks.error(
                CALLER, "field, prompt_field and chat_field exclude each other: all records are of one kind"
            )


class Settings(NamedTuple):
    """All settings of a run.

    Attributes:
        config: the hyperparameters.
        task: the data, the model and the files.
        sizes: arguments of the model, from the table `[sizes]` or `--sizes.width 96`.
    """

    config: TrainConfig
    task: Task
    sizes: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as one table, which `settings_from` reads."""
        return {**dataclasses.asdict(self.task), **self.config.to_dict(), SIZES: self.sizes}


def types_of(cls: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, by name."""
    return {field.name: field.type for field in dataclasses.fields(cls)}


def all_types() -> dict[str, Any]:
    """Return the types of all settings, by name."""
    return {**types_of(Task), **TrainConfig.types()}


def read_arguments(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return the settings of a command line over those of its file, and the switches.

    Raises:
        ValueError, TypeError: for a wrong argument or file.
        OSError: if the file cannot be read.
    """
    rest = list(argv)
    values: dict[str, Any] = {}
    if rest and not rest[0].startswith("-"):
        path = rest.pop(0)
        values = files.read_toml(CALLER, path)
        known = [*all_types(), SIZES]
        kinds.refuse_unknown(f"{CALLER}: {path}", "setting", values, known)
        if not isinstance(values.get(SIZES, {}), dict):
            raise checks.error(CALLER, f"{path}: sizes must be a table, got {values[SIZES]!r:.80}")
    rest, sizes = _sizes(rest)
    found = arguments.parse(CALLER, rest, {**all_types(), **SWITCHES})
    switches = {name: bool(found.pop(name, False)) for name in SWITCHES}
    return {**values, **found, SIZES: {**values.get(SIZES, {}), **sizes}}, switches


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return the settings of a table; refuse wrong ones."""
    config = {name: value for name, value in values.items() if name in TrainConfig.types()}
    task = {name: value for name, value in values.items() if name in types_of(Task)}
    sizes = dict(values.get(SIZES, {}))
    made = relabelled("TrainConfig: ", f"{CALLER}: ", lambda: TrainConfig(**config))
    return Settings(made, Task(**task), sizes)


def differences(begun: Settings, now: Settings) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ: the name, the value the run began with, and the value now."""
    first, second = _flat(begun.to_dict()), _flat(now.to_dict())
    names = [*first, *(name for name in second if name not in first)]
    return [
        (name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    ]


def refuse_other_settings(begun: Settings, now: Settings) -> list[str]:
    """Refuse to resume a run with settings that change its steps; return sentences on harmless changes.

    Raises:
        ValueError: with every setting that differs and is not harmless.
    """
    found = differences(begun, now)
    wrong = [f"{name} is {new!r}, not {old!r}" for name, old, new in found if name not in HARMLESS]
    if wrong:
        raise checks.error(
            CALLER,
            f"the run in {now.task.out} began with other settings: {'; '.join(wrong)}. "
            "Resume it with its own, or start another run with another --out",
        )
    return [f"{name} is now {new!r}; the run began with {old!r}" for name, old, new in found if name != "out"]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in values.items() if name != SIZES}
    return flat | {f"{SIZES}.{name}": value for name, value in values[SIZES].items()}


def _sizes(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the other arguments, and those of the model: `--sizes.width 96`."""
    rest, sizes, given = [], {}, list(argv)
    while given:
        flag, equals, text = given.pop(0).partition("=")
        if not flag.startswith(f"--{SIZES}."):
            rest.append(f"{flag}{equals}{text}")
            continue
        name = flag.removeprefix(f"--{SIZES}.").replace("-", "_")
        if not equals:
            if not given or given[0].startswith("--"):
                raise checks.error(CALLER, f"{flag} needs a value")
            text = given.pop(0)
        sizes[name] = plain(text)
    return rest, sizes


def plain(text: str) -> Any:
    """Return the number, Boolean or text that an argument stands for."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
