"""The runs of a sweep: every combination of the values that are swept."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from purestep._core import checks
from purestep._loop.config import arguments, kinds
from purestep.cli.training import settings
from purestep.cli.training.settings import SIZES, Settings, all_types, settings_from

CALLER = "sweep"
OUT = "runs/sweep"
# Arrays of the optimizer's state: runs that differ in these alone train as one population.
ARRAYS = ("learning_rate", "weight_decay", "max_grad_norm")
_MOST = 1000
_NO_GRID = frozenset({"out", "data", "validation", "prompt", "measure"})


class Planned(NamedTuple):
    """A run of the sweep.

    Attributes:
        name: the swept values, such as `learning_rate=0.001,weight_decay=0.0`.
        swept: the swept values by name.
        values: all settings, for `settings_from`.
        settings: the same, checked.
    """

    name: str
    swept: dict[str, Any]
    values: dict[str, Any]
    settings: Settings


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts of `--set`, and the other arguments.

    >>> split(["c.toml", "--set", "seed=1,2", "--max-steps", "10", "--set=b1=0.8"])
    (['seed=1,2', 'b1=0.8'], ['c.toml', '--max-steps', '10'])
    """
    grids, rest, given = [], [], list(argv)
    while given:
        flag, equals, text = given.pop(0).partition("=")
        if flag != "--set":
            rest.append(f"{flag}{equals}{text}")
        elif equals:
            grids.append(text)
        elif given:
            grids.append(given.pop(0))
        else:
            raise checks.error(CALLER, "--set needs a value, such as learning_rate=1e-3,3e-3")
    return grids, rest


def swept(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each swept setting.

    Raises:
        ValueError: for a text that is not `name=value,value`, an unknown setting, a value of another type, or
            a name or value that is given twice.

    >>> swept(["learning-rate=1e-3,3e-3", "seed=1"])
    {'learning_rate': [0.001, 0.003], 'seed': [1]}
    """
    if not texts:
        raise checks.error(CALLER, "give at least one --set, such as --set learning_rate=1e-3,3e-3")
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not listed:
            raise checks.error(CALLER, f"--set must be name=value,value, got {text!r:.80}")
        if name in _NO_GRID:
            raise checks.error(CALLER, f"--set cannot vary {name}; it is the same for all runs")
        values = [_parsed(name, each.strip()) for each in listed.split(",")]
        if name in found:
            raise checks.error(CALLER, f"--set {name} is given twice; write all its values in one")
        for index, value in enumerate(values):
            if value in values[:index]:
                raise checks.error(CALLER, f"--set {name} must have different values, got {value!r} twice")
        found[name] = values
    return found


def _parsed(name: str, text: str) -> Any:
    if name.startswith(f"{SIZES}."):
        return settings.plain(text)
    kinds.refuse_unknown(CALLER, "setting", [name], [*all_types(), SIZES])
    return arguments.parse(CALLER, [f"--{name}={text}"], all_types())[name]


def planned(values: dict[str, Any], grid: dict[str, list[Any]], *, again: bool = False) -> list[Planned]:
    """Return every run of the grid, with a directory of its own; refuse wrong settings before any work.

    Args:
        values: the settings that all runs share.
        grid: the values of each swept setting.
        again: the sweep is continued, so that its directories may exist.

    Raises:
        ValueError, TypeError: for a wrong setting; for a grid of more than 1000 runs; for a directory that
            already holds something.
    """
    out = Path(values.get("out") or OUT)
    runs = []
    count = 1
    for each in grid.values():
        count *= len(each)
    if count > _MOST:
        raise checks.error(CALLER, f"a sweep must have at most {_MOST} runs, got {count}")
    for combined in itertools.product(*grid.values()):
        chosen = dict(zip(grid, combined, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items()).replace("/", "_")
        sizes = {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith(f"{SIZES}.")}
        plain = {key: value for key, value in chosen.items() if not key.startswith(f"{SIZES}.")}
        whole = {
            "sample_tokens": 0,
            **values,
            **plain,
            SIZES: {**values.get(SIZES, {}), **sizes},
            "out": str(out / name),
        }
        runs.append(Planned(name, chosen, whole, settings_from(whole)))
    taken = [run for run in runs if Path(run.values["out"]).exists()]
    if taken and not again:
        raise checks.error(
            CALLER, f"{taken[0].values['out']} already exists: choose another directory with --out"
        )
    return runs


def grouped(runs: Sequence[Planned], most: int) -> list[list[Planned]]:
    """Return the runs in groups of at most `most` that can train as one population."""
    groups: dict[str, list[list[Planned]]] = {}
    for run in runs:
        values = run.settings.to_dict()
        # Without clipping or decay the optimizer has a part less.
        parts = {name: bool(values[name]) for name in ("weight_decay", "max_grad_norm")}
        same = {name: value for name, value in values.items() if name not in (*ARRAYS, "out")}
        batches = groups.setdefault(repr((same, parts)), [[]])
        if len(batches[-1]) == most:
            batches.append([])
        batches[-1].append(run)
    return [batch for batches in groups.values() for batch in batches]
