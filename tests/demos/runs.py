"""What tests of the demos share: options, interruptions, and the files of a run."""

import argparse
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import purestep as ps
from tests._loop.workload import assert_same

CLOCKS = ("seconds", "steps_per_second", "samples_per_second", "tokens_per_second")


def options(**given: Any) -> argparse.Namespace:
    """Return the parsed options of a run that is not compiled and prints JSON."""
    return argparse.Namespace(**{"out": None, "resume": False, "json": True, "compile": False, **given})


def rows(path: Path, phase: str = "") -> list[dict[str, Any]]:
    """Return the metrics of a phase without the times."""
    lines = (path / phase / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if name not in CLOCKS} for line in lines]


def state(path: Path, phase: str = "") -> Any:
    """Return the state of the newest checkpoint of a phase."""
    return ps.checkpoint.Checkpointer(path / phase / "checkpoints").restore().state


def check_files(path: Path, *phases: str, others: tuple[str, ...] = ("curves.png",)) -> None:
    """Check that a demo wrote its files, those of each phase in a directory of its own, and a PNG."""
    own = {"metrics.jsonl", "checkpoints", "bundles"}
    for phase in phases:
        assert {file.name for file in (path / phase).iterdir()} == own
    names = {"run.json", *others} | (set(phases) if phases else own)
    assert {file.name for file in path.iterdir()} == names
    assert next(path.glob("*.png")).read_bytes().startswith(b"\x89PNG")


def stop() -> None:
    """Send the process a signal to stop."""
    signal.raise_signal(signal.SIGTERM)


def crash() -> None:
    """Stop at once, as a second signal does."""
    raise KeyboardInterrupt


@contextmanager
def acting(at: int, act: Callable[[], None]) -> Iterator[None]:
    """Act after the `at`-th step that is made, counted over all phases."""
    fit, made = ps.fit, [0]

    class Acting(ps.callbacks.Callback):
        def on_step_end(self, progress: Any) -> None:
            made[0] += 1
            if made[0] == at:
                act()

    def acted(*arguments: Any, callbacks: Any = (), **given: Any) -> ps.FitResult:
        return fit(*arguments, callbacks=[*callbacks, Acting()], **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ps, "fit", acted)
        yield


def check_resumed(
    run: Callable[..., int], capsys: Any, at: int, act: Callable[[], None], phases: tuple[str, ...] = ("",)
) -> None:
    """Check that a run that is stopped and resumed ends with the bits of one that is not stopped."""
    here = Path.cwd()
    assert run(options(out="whole", steps=4)) == 0
    whole = json.loads(capsys.readouterr().out)
    with acting(at, act):
        assert run(options(out="part", steps=4)) == 130
    capsys.readouterr()
    assert run(options(out="part", resume=True)) == 0
    part = json.loads(capsys.readouterr().out)
    changing = ("out", "peak_memory_mb", *CLOCKS)
    assert {k: v for k, v in part.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    for phase in phases:
        assert_same(state(here / "part", phase), state(here / "whole", phase))
        assert rows(here / "part", phase) == rows(here / "whole", phase)
