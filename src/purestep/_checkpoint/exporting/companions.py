"""The files beside the weights of a model that readers need: the tokenizer's, its templates, its code."""

import shutil
from pathlib import Path

from purestep._checkpoint.disk import atomic
from purestep._checkpoint.exporting.configuration import CONFIGURATION
from purestep._checkpoint.format.header import kind_of
from purestep._checkpoint.format.names import INDEX

_ENDS = (".json", ".jsonl", ".txt", ".jinja", ".model", ".tiktoken", ".py")
# Files that describe the weights of `base`, or adapters of it.
_OF_WEIGHTS = (CONFIGURATION, "adapter_config.json", "hf_quant_config.json")


def companions(caller: str, base: Path) -> list[Path]:
    """Return the files to copy from the directory of a model, in order of their names.

    Raises:
        NotADirectoryError: if there is no directory at `base`.
    """
    if kind_of(caller, base) != "directory":
        raise NotADirectoryError(f"{caller}: base must be a directory of a model on this disk, got {base}")
    return [
        entry
        for entry in sorted(base.iterdir())
        if entry.name.endswith(_ENDS)
        and not entry.name.startswith(".")
        and not entry.name.endswith(INDEX)
        and entry.name not in _OF_WEIGHTS
        and kind_of(caller, entry) == "file"
    ]


def copy(files: list[Path], directory: Path) -> None:
    """Copy files, or the files that links lead to, and wait until they are on the disk."""
    for file in files:
        shutil.copyfile(file, directory / file.name)
        atomic.flush(directory / file.name)
