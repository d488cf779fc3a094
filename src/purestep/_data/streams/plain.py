"""The state of a loader as plain JSON values, and back.

The state of a shuffling loader holds more than JSON does: a tensor or an array of a random generator, tuples,
bytes, integers of 128 bits. Each becomes a dict with one key that says what it was.
"""

import base64
import copy
import importlib
from typing import Any

import mlx.core as mx

_MARK = "purestep.stream"
_LARGEST = 2**63  # checkpoints hold smaller integers


def to_plain(value: Any) -> Any:
    """Return a copy as plain values. What cannot be stored is copied as it is: a checkpoint refuses it.

    >>> to_plain({"place": 3, "generator": (1, b"ab")})
    {'place': 3, 'generator': {'purestep.stream': ['tuple', [1, {'purestep.stream': ['bytes', 'YWI=']}]]}}
    """
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < _LARGEST):
        return value
    if kind is int:
        return {_MARK: ["int", hex(value)]}
    if kind is list:
        return [to_plain(child) for child in value]
    if kind is tuple:
        return {_MARK: ["tuple", [to_plain(child) for child in value]]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _MARK not in value:
            return {key: to_plain(child) for key, child in value.items()}
        return {_MARK: ["dict", [[to_plain(key), to_plain(child)] for key, child in value.items()]]}
    if kind in (bytes, bytearray):
        return {_MARK: [kind.__name__, base64.b64encode(value).decode()]}
    module = kind.__module__.partition(".")[0]
    if module in ("numpy", "torch", "mlx") and hasattr(value, "dtype") and hasattr(value, "tolist"):
        dtype = str(value.dtype).rpartition(".")[2]
        if dtype != "object":
            return {_MARK: [module, dtype, list(value.shape), to_plain(value.reshape(-1).tolist())]}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def from_plain(value: Any) -> Any:
    """Return what `to_plain` was given.

    >>> from_plain(to_plain({"place": 3, "generator": (1, b"ab", 2**100)}))
    {'place': 3, 'generator': (1, b'ab', 1267650600228229401496703205376)}
    """
    if isinstance(value, list):
        return [from_plain(child) for child in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: from_plain(child) for key, child in value.items()}
    kind, *rest = value[_MARK]
    if kind in ("numpy", "torch", "mlx"):
        return _array(kind, *rest)
    (content,) = rest
    if kind == "int":
        return int(content, 16)
    if kind == "dict":
        return {from_plain(key): from_plain(child) for key, child in content}
    if kind == "tuple":
        return tuple(from_plain(child) for child in content)
    found = base64.b64decode(content)
    return bytearray(found) if kind == "bytearray" else found


def _array(module: str, dtype: str, shape: list[int], flat: Any) -> Any:
    flat = from_plain(flat)
    if module == "mlx":
        return mx.array(flat, getattr(mx, dtype)).reshape(shape)
    library = importlib.import_module(module)  # the loader uses it
    made: Any = library.tensor if module == "torch" else library.array
    array = made(flat, dtype=getattr(library, dtype)).reshape(shape)
    return array if shape or module == "torch" else array[()]
