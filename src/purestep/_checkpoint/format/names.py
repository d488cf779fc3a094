"""The names that purestep gives to files, and the keys of its metadata."""

import re
from pathlib import PurePath

SUFFIX = ".safetensors"
INDEX = ".index.json"  # follows SUFFIX
MANIFEST = "manifest.json"
LOCK = ".lock"

KEY = "purestep"  # a metadata key; its value is the sealed header of the state
PART = "purestep_part_of"  # a metadata key of each shard; its value is the name of the index file
ECOSYSTEM = {"format": "mlx"}  # the metadata that other readers require before they open a file

SHARD = re.compile(r"(.*)-\d{5,}-of-\d{5,}" + re.escape(SUFFIX))

_DIVIDED = re.compile(r"-\d{5,}-of-\d{5,}(?=\.)|" + re.escape(INDEX) + "$")
_TEMPORARY = re.compile(r"\.step_\d+(?:\.\d+)?\.(.+)\.(\d+)\.[0-9a-f]{8}tmp")


def shard(stem: str, number: int, count: int) -> str:
    """Return the name of one of several files of a state, as on Hugging Face; numbers start at 1.

    >>> shard("model", 1, 3)
    'model-00001-of-00003.safetensors'
    """
    return f"{stem}-{number:05}-of-{count:05}{SUFFIX}"


def piece(path: str, number: int, count: int) -> str:
    """Return the name of one of several pieces of an array in files; numbers start at 1.

    No path of a tree has such a segment: a key with a hyphen is written as a JSON string.

    >>> piece("opt_state.0.mu.w", 1, 3)
    'opt_state.0.mu.w.00001-of-00003'
    """
    return f"{path}.{number:05}-of-{count:05}"


def receipt(rank: int) -> str:
    """Return the name of the file in which a rank tells what it wrote."""
    return f"rank-{rank:05}.json"


def presence(rank: int) -> str:
    """Return the name of the file that a rank keeps locked while it writes."""
    return f"rank-{rank:05}.lock"


def index_of(name: str) -> str:
    """Return the name of the index of a state.

    >>> index_of("model"), index_of("model.safetensors")
    ('model.safetensors.index.json', 'model.safetensors.index.json')
    """
    return name.removesuffix(SUFFIX) + SUFFIX + INDEX


def undivided(name: str) -> str:
    """Return the name without the number of a shard or the end of an index.

    >>> undivided("a-00001-of-00002.safetensors"), undivided("a.safetensors.index.json")
    ('a.safetensors', 'a.safetensors')
    """
    return _DIVIDED.sub("", name)


def temporary_file(name: str, host: str, pid: int, token: str) -> str:
    """Return the name of a file while it is written; it ends with the suffix of `name`."""
    return f".{name}.{host}.{pid}.{token}.tmp{PurePath(name).suffix}"


def temporaries(host: str) -> re.Pattern[str]:
    """Return the pattern of temporary files of a host; its groups are name, pid and token."""
    return re.compile(rf"\.(.+)\.{re.escape(host)}\.([1-9]\d{{0,8}})\.(\w+)\.tmp.*")


def temporary_directory(name: str, host: str, pid: int, token: str) -> str:
    """Return the name of a checkpoint's directory while it is written or deleted."""
    return f".{name}.{host}.{pid}.{token}tmp"


def temporary_directories(name: str, host: str) -> re.Pattern[str]:
    """Return the pattern of temporary directories of `name` on a host; its groups are pid and token."""
    return re.compile(rf"\.{re.escape(name)}\.{re.escape(host)}\.([1-9]\d{{0,8}})\.([0-9a-f]{{8}})tmp")


def writer_of(name: str) -> tuple[str, str] | None:
    """Return the host and the pid in the name of a temporary directory, or `None` for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return (found[1], found[2]) if found else None
