"""The description beside an exported step: its inputs and outputs, and what it was made with."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._checkpoint.run.directory import versions
from purestep._core import checks, tree

FORMAT = "purestep step"
VERSION = 1
_AGAIN = "export the step again"


class Sidecar(NamedTuple):
    """What an exported step receives and returns.

    Attributes:
        state: the spec of the state, received and returned.
        batch: the spec of the batch.
        metrics: the spec of the metrics.
        evaluation: whether the step returns metrics alone.
        steps: the number of training steps that one call makes.
    """

    state: tree.Spec
    batch: tree.Spec
    metrics: tree.Spec
    evaluation: bool
    steps: int

    def inputs(self) -> list[tuple[str, tree.ArraySpec]]:
        """Return the name and the form of each input, in the order of the file."""
        return [*_sorted("batch", self.batch), *_sorted("state", self.state)]

    def outputs(self) -> list[tuple[str, tree.ArraySpec]]:
        """Return the name and the form of each output, in the order of the file."""
        state = [] if self.evaluation else _sorted("state", self.state)
        return [*state, *_sorted("metrics", self.metrics)]


def place(path: Path) -> Path:
    """Return the path of the sidecar of a file."""
    return path.with_name(path.name + ".json")


def text(sidecar: Sidecar, path: Path) -> str:
    """Return a sidecar as JSON, for an exported step that is written."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "versions": versions(),
        "device": _device(),
        "sha256": digest(path),
        "shapes": "fixed",
        "inputs": [_listed(*each) for each in sidecar.inputs()],
        "outputs": [_listed(*each) for each in sidecar.outputs()],
        "state": tree.to_plain(sidecar.state),
        "batch": tree.to_plain(sidecar.batch),
        "metrics": tree.to_plain(sidecar.metrics),
        "evaluation": sidecar.evaluation,
        "steps": sidecar.steps,
    }
    return json.dumps(content, indent=1) + "\n"


def read(path: Path, caller: str) -> Sidecar:
    """Return the sidecar of an exported step, which must be for this file, this MLX and this device."""
    source = place(path)
    for needed in (path, source):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{caller}: {needed} is missing: an exported step is {path.name} and {source.name}"
            )
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise checks.error(caller, f"{source} is not a description that purestep.export wrote")
    if content.get("version") != VERSION:
        raise checks.error(
            caller, f"{source} has format {content.get('version')!r}, this purestep reads {VERSION}: {_AGAIN}"
        )
    try:
        written, device, expected = content["versions"]["mlx"], content["device"], content["sha256"]
        found = _described(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
        raise checks.error(caller, f"{source} is damaged: {_AGAIN}") from None
    if written != versions()["mlx"]:
        raise checks.error(
            caller,
            f"{path} was written by MLX {written}, and MLX {versions()['mlx']} may read it otherwise: "
            f"{_AGAIN} with this version",
        )
    if device != _device():
        raise checks.error(
            caller, f"{path} runs on the {device}, and the default device is the {_device()}: {_AGAIN}"
        )
    if digest(path) != expected:
        raise checks.error(caller, f"{source} describes another file than {path.name}: {_AGAIN}")
    return found


def _described(content: dict[str, Any]) -> Sidecar:
    state, batch, metrics = (tree.from_plain(content[name]) for name in ("state", "batch", "metrics"))
    found = Sidecar(state, batch, metrics, content["evaluation"], content["steps"])
    # The file has every name, shape and dtype twice, so that a change of one of them is found.
    listed = [[_listed(*each) for each in forms] for forms in (found.inputs(), found.outputs())]
    counted = type(found.steps) is int and found.steps > 0
    if listed != [content["inputs"], content["outputs"]] or type(found.evaluation) is not bool or not counted:
        raise ValueError
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sorted(name: str, spec: tree.Spec) -> list[tuple[str, tree.ArraySpec]]:
    return sorted((tree.join(name, path), form) for path, form in tree.spec_items(spec))


def _listed(name: str, form: tree.ArraySpec) -> dict[str, Any]:
    return {"name": name, "shape": list(form.shape), "dtype": form.dtype}


def _device() -> str:
    return mx.default_device().type.name
