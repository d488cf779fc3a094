"""The hyperparameters of a run: `TrainConfig`."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from purestep._core import checks
from purestep._loop.config import arguments, files, kinds

OptimizerName: TypeAlias = Literal[
    "adamw", "adam", "nadamw", "ademamix", "lamb", "lion", "adafactor", "muon", "sgd"
]
ScheduleName: TypeAlias = Literal["cosine", "linear", "constant", "wsd"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16"]

MeasureName: TypeAlias = Literal[
    "grad_norms", "weight_norms", "drift", "update_ratios", "nonfinite_share", "zero_share", "curvature"
]

_ClassT = TypeVar("_ClassT")
_MOST = 2**31 - 1  # a state counts its steps in int32
_CALLER = "TrainConfig"

# The fields that only some optimizers have. The others refuse them.
_OWN = {
    "b1": ("adamw", "adam", "nadamw", "ademamix", "lamb", "lion", "muon"),
    "b2": ("adamw", "adam", "nadamw", "ademamix", "lamb", "lion", "muon"),
    "momentum": ("sgd", "muon"),
}


class Bounds(NamedTuple):
    """The range of a number."""

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None


_COUNT = Bounds(least=1, most=_MOST)
_BOUNDS = {
    "learning_rate": Bounds(above=0),
    "weight_decay": Bounds(least=0),
    "warmup_steps": Bounds(least=0, most=_MOST),
    "max_steps": _COUNT,
    "batch_size": _COUNT,
    "grad_accumulation_steps": _COUNT,
    "max_grad_norm": Bounds(least=0),
    "eval_interval": _COUNT,
    "log_interval": _COUNT,
    "checkpoint_interval": _COUNT,
    "measure_every": _COUNT,
    "seed": Bounds(least=0, below=2**64),
    "min_lr_ratio": Bounds(least=0, most=1),
    "decay_ratio": Bounds(above=0, most=1),
    "b1": Bounds(least=0, below=1),
    "b2": Bounds(least=0, below=1),
    "momentum": Bounds(least=0, below=1),
}


def known_fields_only(cls: type[_ClassT]) -> type[_ClassT]:
    """Make a dataclass refuse unknown names with the nearest field, in place of Python's own error."""
    made: Any = cls.__init__
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(made)
    def init(self: Any, *given: Any, **values: Any) -> None:
        kinds.refuse_unknown(cls.__name__, "field", values, known)
        made(self, *given, **values)

    cls.__init__ = init
    return cls


@known_fields_only
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The hyperparameters of a run. Immutable; checked when it is made.

    A step is one call of the step function, on one batch. With `grad_accumulation_steps` of k, the
    parameters change at every k-th step. All intervals, `warmup_steps` and `max_steps` count steps.

    Attributes:
        learning_rate: the largest rate, greater than 0.
        weight_decay: at least 0; matrices decay, biases and norms do not. See `create_optimizer`.
        warmup_steps: the steps in which the rate rises linearly, in [0, `max_steps`].
        max_steps: the steps of the run, at which the schedule ends; at least 1.
        batch_size: the examples of a batch.
        grad_accumulation_steps: the steps whose gradients are averaged for one update; at least 1.
        max_grad_norm: gradients are scaled down to this global norm; 0 turns clipping off.
        eval_interval: the steps between two evaluations.
        log_interval: the steps between two rows of figures.
        checkpoint_interval: the steps between two checkpoints.
        optimizer: the optimizer's name.
        lr_schedule: the shape of the rate after the warm-up, see `create_schedule`.
        compile_step: compile the step.
        seed: seed of the weights, the data's order and dropout, in [0, 2**64).
        min_lr_ratio: the rate at `max_steps` as a fraction of `learning_rate`, in [0, 1]; a constant
            schedule does not use it.
        decay_ratio: for `wsd`, the part of `max_steps` in which the rate decays, in (0, 1]. `None` is 0.2.
        b1, b2: the decays of the means of gradients and of squares, in [0, 1). `None` is the optimizer's
            own default, such as 0.9 and 0.999 for adamw, or 0.9 and 0.99 for lion.
        momentum: for sgd and muon, in [0, 1). `None` is 0.9 for sgd and 0.95 for muon.
        dtype: the dtype in which the loss is computed. Parameters and optimizer state stay float32. float16
            includes dynamic loss scaling.
        measure: the names of measurements that the step makes, such as `["grad_norms", "weight_norms"]`;
            each is that of `purestep.metrics` for all layers. `drift` is the distance from the first
            parameters. They change no parameter.
        measure_every: the steps from one measurement to the next.

    Raises:
        TypeError: for a value of another type: "10" and True are not integers, 10.0 neither.
        ValueError: for an unknown name, with the nearest; for a value out of range; for a warm-up longer than
            `max_steps`; and for a field that the chosen optimizer or schedule does not have.

    >>> config = TrainConfig(learning_rate=1e-3, max_steps=500)
    >>> config.replace(optimizer="lion", learning_rate=1e-4).weight_decay
    0.01
    >>> TrainConfig(learning_rat=1e-3)
    Traceback (most recent call last):
    ValueError: TrainConfig: there is no field 'learning_rat'; did you mean learning_rate?
    """

    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_steps: int = 1000
    batch_size: int = 32
    grad_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    eval_interval: int = 100
    log_interval: int = 10
    checkpoint_interval: int = 500
    optimizer: OptimizerName = "adamw"
    lr_schedule: ScheduleName = "cosine"
    compile_step: bool = True
    seed: int = 42
    min_lr_ratio: float = 0.1
    decay_ratio: float | None = None
    b1: float | None = None
    b2: float | None = None
    momentum: float | None = None
    dtype: DtypeName = "float32"
    measure: tuple[MeasureName, ...] = ()
    measure_every: int = 10

    def __post_init__(self) -> None:
        for name, kind in self.types().items():
            value = kinds.checked(_CALLER, name, getattr(self, name), kind)
            if value is not None and name in _BOUNDS:
                checks.number(_CALLER, name, value, **_BOUNDS[name]._asdict())
            object.__setattr__(self, name, value)
        if self.warmup_steps > self.max_steps:
            rule = f"warmup_steps must be at most max_steps ({self.max_steps})"
            default = ", the default" if self.warmup_steps == type(self).warmup_steps else ""
            raise checks.error(_CALLER, f"{rule}, got {self.warmup_steps}{default}")
        for name, owners in _OWN.items():
            if getattr(self, name) is not None and self.optimizer not in owners:
                raise checks.error(
                    _CALLER,
                    f"{name} must be left out for {self.optimizer}, which does not use it, "
                    f"got {getattr(self, name)}",
                )
        if self.decay_ratio is not None and self.lr_schedule != "wsd":
            rule = f"decay_ratio must be left out for a {self.lr_schedule} schedule, which does not use it"
            raise checks.error(_CALLER, f"{rule}, got {self.decay_ratio}")

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Return the types of the fields, by name in their order.

        >>> TrainConfig.types()["seed"]
        <class 'int'>
        """
        return {field.name: field.type for field in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration with these fields; fields that are absent have their defaults.

        >>> TrainConfig.from_dict({"seed": 1}).seed
        1
        """
        return _made("from_dict", "", values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "TrainConfig":
        """Read a TOML file with fields at its top level, such as `learning_rate = 1e-3`.

        Raises:
            OSError: if the file cannot be read.
            TypeError, ValueError: if it is not TOML or not a configuration; with the file's name.

        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "config.toml")
        ...     _ = path.write_text(TrainConfig(seed=3).to_toml())
        ...     TrainConfig.from_toml(path) == TrainConfig(seed=3)
        True
        """
        table = files.read_toml("TrainConfig.from_toml", path)
        return _made("from_toml", f"{os.fspath(path)}: ", table)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "TrainConfig":
        """Read a JSON file that holds one object of fields. Raises as `from_toml`.

        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = pathlib.Path(directory, "config.json")
        ...     _ = path.write_text('{"max_steps": 200}')
        ...     TrainConfig.from_json(path).max_steps
        200
        """
        table = files.read_json("TrainConfig.from_json", path)
        return _made("from_json", f"{os.fspath(path)}: ", table)

    @classmethod
    def from_arguments(cls, argv: Sequence[str], *, base: "TrainConfig | None" = None) -> "TrainConfig":
        """Return a configuration with the fields that a command line sets.

        Args:
            argv: `--name value` or `--name=value`, with dashes or underscores. A Boolean field is also set
                by `--compile-step` and `--no-compile-step`. `none` stands for `None`. The last one of
                several values is taken.
            base: the configuration that has the other fields; the defaults if it is `None`.

        Raises:
            ValueError: for an unknown option, with the nearest; for a value of another type or out of range.

        >>> TrainConfig.from_arguments(["--max-steps", "50", "--warmup_steps=5"]).max_steps
        50
        """
        if base is not None and not isinstance(base, cls):
            raise TypeError(
                f"TrainConfig.from_arguments: base must be a TrainConfig, got {checks.shown(base):.80}"
            )
        found = arguments.parse("TrainConfig.from_arguments", argv, cls.types())
        return _made("from_arguments", "", {**({} if base is None else base.to_dict()), **found})

    def replace(self, **changes: Any) -> "TrainConfig":
        """Return a configuration with other values of some fields.

        >>> TrainConfig().replace(seed=1).seed
        1
        """
        kinds.refuse_unknown("TrainConfig.replace", "field", changes, self.types())
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as values that JSON has. `from_dict` takes them.

        >>> TrainConfig.from_dict(TrainConfig(seed=1).to_dict()) == TrainConfig(seed=1)
        True
        """
        values = {name: getattr(self, name) for name in self.types()}
        return {name: list(each) if isinstance(each, tuple) else each for name, each in values.items()}

    def to_toml(self) -> str:
        """Return all fields as TOML, but those that are `None`. `from_toml` reads them.

        >>> TrainConfig().to_toml().splitlines()[:2]
        ['learning_rate = 0.0003', 'weight_decay = 0.01']
        """
        return files.toml(self.to_dict())


def _made(method: str, place: str, values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration; an error names the method and the file."""
    caller = f"{_CALLER}.{method}"
    if not isinstance(values, Mapping):
        raise TypeError(f"{caller}: values must be a mapping, got {checks.shown(values)}")
    kinds.refuse_unknown(f"{caller}: {place}".rstrip(": "), "field", values, TrainConfig.types())
    return relabelled(f"{_CALLER}: ", f"{caller}: {place}", lambda: TrainConfig(**values))


def relabelled(old: str, new: str, make: Callable[[], _ClassT]) -> _ClassT:
    """Return what a function makes; an error that begins with one prefix gets another one."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        said = str(error)
        raise type(error)(new + said.removeprefix(old)) from None
