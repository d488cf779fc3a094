"""An independent reader of a directory of weights: the safetensors package alone."""

import json
from pathlib import Path

import mlx.core as mx
from safetensors import deserialize, safe_open


def raw(array: mx.array) -> bytes:
    """Return the bytes of an array in row-major order."""
    return bytes(memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8)))


def contents(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return dtype, shape and bytes of each array of a file, by name."""
    found = deserialize(path.read_bytes())
    return {name: (each["dtype"], list(each["shape"]), bytes(each["data"])) for name, each in found}


def metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, "np") as file:
        return file.metadata()


def whole(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return what the index of a directory names, after checking that the files hold exactly this."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = {file: contents(directory / file) for file in set(index["weight_map"].values())}
    held = {name: file for file, arrays in files.items() for name in arrays}
    assert held == index["weight_map"]
    assert {path.name for path in directory.glob("*.safetensors")} == set(files)
    assert all(metadata(directory / file) == {"format": "mlx"} for file in files)
    found = {name: each for arrays in files.values() for name, each in arrays.items()}
    assert index["metadata"]["total_size"] == sum(len(data) for *_, data in found.values())
    return found


def described(arrays: dict[str, mx.array]) -> dict[str, tuple[str, list[int], bytes]]:
    """Return arrays as `contents` does."""
    names = {
        mx.float32: "F32",
        mx.bfloat16: "BF16",
        mx.float16: "F16",
        mx.uint8: "U8",
        mx.int32: "I32",
        mx.uint32: "U32",
        mx.bool_: "BOOL",
        mx.int64: "I64",
    }
    return {name: (names[a.dtype], list(a.shape), raw(a)) for name, a in arrays.items()}
