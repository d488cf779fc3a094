"""Find the safetensors files that other programs wrote, and their headers."""

from pathlib import Path
from typing import NamedTuple

from purestep._checkpoint.disk.index import read_index
from purestep._checkpoint.format.header import CorruptError, kind_of, reading
from purestep._checkpoint.format.names import INDEX, SUFFIX, index_of
from purestep._checkpoint.format.safetensors_header import read_safetensors_header
from purestep._checkpoint.format.specs import DTYPES, Leaves
from purestep._core import checks

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # zip archives, pickles


class Weights(NamedTuple):
    """The arrays of one file, or of those that an index names.

    Attributes:
        source: their name in errors.
        directory: of the files.
        files: the file of each array by name.
        leaves: dtype and shape of each array by name.
    """

    source: str
    directory: Path
    files: dict[str, str]
    leaves: Leaves


def weights_at(caller: str, path: Path) -> Weights:
    """Return the arrays of a file, an index or a directory of either, with checked headers."""
    if kind_of(caller, path) == "directory":
        path = _in_directory(caller, path)
    if kind_of(caller, path) != "file":
        raise FileNotFoundError(f"{caller}: no file at {path}")
    if not path.name.endswith(".json"):
        leaves = _readable(caller, path)
        return Weights(str(path), path.parent, dict.fromkeys(leaves, path.name), leaves)
    index = read_index(caller, path, "")
    held = {name: _readable(caller, path.parent / name) for name in index.files}
    for key, name in index.placed():
        if key not in held[name]:
            raise CorruptError(f"{caller}: {path} is damaged: {key[:1000]} is not in {name}")
    files = dict(index.placed())
    leaves = {key: held[name][key] for key, name in files.items()}
    return Weights(str(path), path.parent, files, leaves)


def _readable(caller: str, path: Path) -> Leaves:
    try:
        leaves = read_safetensors_header(caller, path).leaves
    except CorruptError:
        if _is_pickle(caller, path):
            raise _pickled(caller, path) from None
        raise
    for name, (dtype, _) in leaves.items():
        if dtype not in DTYPES:
            raise checks.error(caller, f"{path} holds {name} in {dtype}, which MLX cannot read: convert it")
    return leaves


def _in_directory(caller: str, path: Path) -> Path:
    for name in (index_of("model"), "model" + SUFFIX):
        if kind_of(caller, path / name) == "file":
            return path / name
    for end in (SUFFIX + INDEX, SUFFIX):
        found = sorted(
            entry for entry in path.iterdir() if entry.name.endswith(end) and kind_of(caller, entry) == "file"
        )
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(entry.name for entry in found[:5])
            raise FileNotFoundError(f"{caller}: {path} has several files, give one of {shown}")
    for entry in sorted(path.iterdir()):
        if entry.suffix in _PICKLES and kind_of(caller, entry) == "file":
            raise _pickled(caller, entry)
    raise FileNotFoundError(f"{caller}: {path} has no safetensors file")


def _is_pickle(caller: str, path: Path) -> bool:
    """Tell whether a file that is no safetensors file is one of torch."""
    if kind_of(caller, path) != "file" or path.suffix == SUFFIX:
        return False
    with reading(caller, path), path.open("rb") as file:
        return file.read(4).startswith(_STARTS)


def _pickled(caller: str, path: Path) -> ValueError:
    return checks.error(
        caller,
        f"path must be a safetensors file, got {path}, a pickle, which can run any code when it is read; "
        f"with torch: safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), "
        "'model.safetensors')",
    )
