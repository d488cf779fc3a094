"""Stored states by a forger who knows the format: whatever is changed, every seal and checksum is right.

A form draws a forgery, writes it to a directory and returns how it is read, and what it honestly says: the
tree as `described` shows it, or `None` if there is no such tree.
"""

import copy
import json
import struct

import mlx.core as mx
import msgpack

from purestep import replay, tree
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import seal, unseal
from purestep._replay import bundle
from purestep.checkpoint import Checkpointer, from_bytes, load, save, to_bytes
from tests._checkpoint.states import STATE

SIZES = {"bool": 1, "uint8": 1, "int8": 1, "bfloat16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8}
NAMES = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "bfloat16": "BF16", "float16": "F16", "int32": "I32",
         "float32": "F32", "int64": "I64"}  # fmt: skip


def described(node):
    """Return a tree with dtype, shape and bytes for each array, and the type of each container."""
    if isinstance(node, mx.array):
        raw = mx.contiguous(node).reshape(-1)
        data = bytes(memoryview(raw.view(mx.uint16) if raw.dtype == mx.bfloat16 else raw))
        return tree.dtype_name(node.dtype), node.shape, data
    if isinstance(node, dict):
        return {key: described(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [type(node).__name__, [described(child) for child in node]]
    return node


class DishonestError(Exception):
    """A forgery says what cannot be."""


def told(spec, find, path=""):
    """Return what a description says, as `described` shows it; `find` returns the bytes at a path."""
    match spec:
        case ["none"]:
            return None
        case ["array", str(dtype), list(shape)] if dtype in SIZES:
            size = SIZES[dtype]
            for length in shape:
                if type(length) is not int or not 0 <= length < 2**31:
                    raise DishonestError
                size *= length
            found = find(path, dtype, tuple(shape))
            if len(found) != size or len(shape) > 64:
                raise DishonestError
            return dtype, tuple(shape), found
        case ["list" | "tuple" as kind, list(below)]:
            parts = [told(child, find, tree.join(path, str(n))) for n, child in enumerate(below)]
            return [kind, parts]
        case ["dict", list(below)] | ["namedtuple", str(), list(below)]:
            built = {}
            for key, child in below:
                if type(key) not in (str, int) or key in built:
                    raise DishonestError
                segment = key if spec[0] == "namedtuple" else tree.key_segment(key)
                built[key] = told(child, find, tree.join(path, segment))
            return built
    raise DishonestError


def honest(spec, find):
    try:
        return told(spec, find)
    except (DishonestError, TypeError, ValueError, LookupError, RecursionError, AttributeError):
        return None


def junk(draw):
    deep = []
    for _ in range(draw.choice([3, 90, 150, 300])):
        deep = [deep]
    return draw.choice([
        None, True, False, -1, 0, 1, 3, 64, 2**31, 2**63, 2**70, 10**400, 1.5, "", "x", "\ud800", "a.b",
        "array", "float32", "F32", "int8", "../x", "x" * 20_000, [], {}, [[]] * draw.choice([5, 3000]), deep,
        {str(n): [] for n in range(draw.choice([2, 2000]))}, ["none"], ["list", []],
        ["dict", [["a", ["none"]]]],
        ["dict", [["a", ["none"]], ["a", ["none"]]]], ["array", "int8", [0]], ["array", "float32", [1] * 65],
        ["array", "int8", [2**62, 4]], ["namedtuple", "T", [["w", ["none"]]]], ["list", [["none"]] * 2000],
        ["array", "float64", [0]], [0, 0], [1], [1, 1, 2], [600], [20, 15],
    ])  # fmt: skip


def places(value, found=None):
    """Return every (container, key) within a plain value."""
    found = [] if found is None else found
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def mutate(draw, value, times=(0, 1, 1, 1, 2, 4)):
    """Change a plain value in some places."""
    for _ in range(draw.choice(times)):
        found = places(value)
        if not found:
            break
        container, key = draw.choice(found)
        kind = draw.randrange(5)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == 2:
            other, place = draw.choice(found)
            container[key] = copy.deepcopy(other[place])
        elif kind == 3 and type(container[key]) is int:
            container[key] += draw.choice([-1, 1, 2**32])
        else:
            container[key] = junk(draw)
    return value


def unpacked(file):
    """Return the header of a safetensors file, and its arrays' bytes."""
    whole = file.read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:stop]), bytearray(whole[stop:])


def repacked(file, header, data):
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def slice_of(header, data, key, dtype=None, shape=None):
    """Return the bytes of an array that a file says it holds."""
    entry = header[key]
    first, last = entry["data_offsets"]
    if dtype and (entry["dtype"], tuple(entry["shape"])) != (NAMES[dtype], shape):
        raise DishonestError
    if not 0 <= first <= last <= len(data):
        raise DishonestError
    return bytes(data[first:last])


def change(draw, files, content):
    """Change what sealed content says, the headers of its files or their bytes; perhaps all alike."""
    if draw.random() < 0.7:
        mutate(draw, content.get("tree", []) if draw.random() < 0.5 else content)
    if draw.random() < 0.4:
        mutate(draw, draw.choice(files)[0])
    if draw.random() < 0.4:
        data = draw.choice(files)[1]
        for _ in range(draw.choice([1, 5])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.1:
        draw.choice(files)[1].extend(bytes(draw.choice([1, 4000])))


def summed(content, member, find):
    """Give every array that content names the checksum of its bytes, where they can be found."""
    for path, place in content[member].items() if isinstance(content.get(member), dict) else ():
        try:
            digest = checksum.of(find(path))
        except (DishonestError, TypeError, ValueError, LookupError, AttributeError):
            continue
        if isinstance(place, list) and len(place) == 3:
            place[2] = digest
        else:
            content[member][path] = digest


def paths(spec):
    """Return the paths of a description, for `told` to meet."""
    found = []
    honest(spec, lambda path, dtype, shape: found.append(path) or bytes(_size(dtype, shape)))
    return found


def _size(dtype, shape):
    size = SIZES[dtype]
    for length in shape:
        size *= length
    return min(size, 10**6)


def packed(draw, place):
    """Bytes of `to_bytes`."""
    _, header, *chunks = msgpack.unpackb(to_bytes(STATE))
    content, pieces = unseal("forge", "", header), [bytearray(chunk) for chunk in chunks]
    change(draw, [([], piece) for piece in pieces], content)
    for _ in range(draw.choice([0, 0, 0, 1])):
        kind, number = draw.randrange(3), draw.randrange(len(pieces))
        if kind == 0:
            del pieces[number]
        elif kind == 1:
            pieces.insert(number, bytearray(draw.choice([0, 1, 4])))
        else:
            pieces.append(pieces.pop(number))
    if draw.random() < 0.6:
        order = iter(pieces)
        content["checksums"] = {path: checksum.of(next(order, b"")) for path in paths(content.get("tree"))}
    data = msgpack.packb(["purestep", seal(content), *map(bytes, pieces)])
    (place / "s.msgpack").write_bytes(data)
    remaining = [bytes(piece) for piece in pieces]

    def find(path, dtype, shape):
        found = remaining.pop(0) if 0 not in shape else b""
        if content["checksums"][path] != checksum.of(found):
            raise DishonestError
        return found

    expected = honest(content.get("tree"), find)
    return lambda: from_bytes(data), None if remaining else expected


def one_file(draw, place):
    """One safetensors file."""
    file = place / "s.safetensors"
    save(file, STATE)
    header, data = unpacked(file)
    content = unseal("forge", "", header["__metadata__"]["purestep"])
    content = json.loads(json.dumps(content))  # nothing in it is shared
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    change(draw, [(entries, data)], content)
    if draw.random() < 0.6:
        summed(content, "checksums", lambda path: slice_of(entries, data, path))
    repacked(file, {**entries, "__metadata__": {"format": "mlx", "purestep": seal(content)}}, data)

    def find(path, dtype, shape):
        found = slice_of(entries, data, path, dtype, shape)
        if content["checksums"][path] != checksum.of(found):
            raise DishonestError
        return found

    return lambda: load(file), honest(content.get("tree"), find)


def divided(draw, place):
    """Several files and an index."""
    path = place / "s.safetensors"
    save(path, STATE, shard_bytes=1000)
    index = place / "s.safetensors.index.json"
    said = json.loads(index.read_text())
    content = json.loads(json.dumps(unseal("forge", "", said["metadata"]["purestep"])))
    files = {file.name: unpacked(file) for file in place.glob("*.safetensors")}
    change(draw, list(files.values()), content)
    if draw.random() < 0.3:
        mutate(draw, said)

    def find(name, dtype=None, shape=None):
        return slice_of(*files[said["weight_map"][name]], name, dtype, shape)

    if draw.random() < 0.6:
        summed(content, "checksums", find)
    if isinstance(said.get("metadata"), dict) and "purestep" in said["metadata"]:
        said["metadata"]["purestep"] = seal(content)
    else:
        content = {}
    for name, (header, data) in files.items():
        repacked(place / name, header, data)
    index.write_text(json.dumps(said))
    return lambda: load(path), honest(content.get("tree"), _checked(find, content, "checksums"))


def _checked(find, content, member):
    def checked(path, dtype, shape):
        found = find(path, dtype, shape)
        place = content[member][path]
        if (place[2] if isinstance(place, list) else place) != checksum.of(found):
            raise DishonestError
        return found

    return checked


def _directory(draw, directory):
    content = json.loads(json.dumps(unseal("forge", "", (directory / "manifest.json").read_text())))
    files = {file.name: unpacked(file) for file in directory.glob("*.safetensors")}
    change(draw, list(files.values()), content)

    def find(path, dtype=None, shape=None):
        file, key, _ = content["leaves"][path]
        return slice_of(*files[file], key, dtype, shape)

    if draw.random() < 0.6:
        summed(content, "leaves", find)
    for name, (header, data) in files.items():
        repacked(directory / name, header, data)
        if draw.random() < 0.95 and isinstance(content.get("files"), dict) and name in content["files"]:
            whole = (directory / name).read_bytes()
            content["files"][name] = [len(whole), checksum.of(whole[: len(whole) - len(data)])]
    (directory / "manifest.json").write_text(seal(content))
    return honest(content.get("tree"), _checked(find, content, "leaves"))


def of_a_run(draw, place):
    """A checkpoint of a run."""
    with Checkpointer(place, shard_bytes=1000) as checkpointer:
        checkpointer.save(STATE, step=7, metrics={"loss": 0.5}, metadata={"epoch": [1, "a"]})
    expected = _directory(draw, place / "step_00000007")
    return lambda: Checkpointer(place).restore(7).state, expected


def recorded(draw, place):
    """A replay bundle."""
    path = bundle.write(place, 7, STATE, {"x": mx.ones(3)}, {"loss": mx.array(mx.nan)}, STATE, ("loss",))
    expected = _directory(draw, path)

    def read():
        found = replay.load(path)
        return {"state": found.state, "batch": found.batch, "metrics": found.metrics}

    return read, expected


FORMS = [packed, one_file, divided, of_a_run, recorded]
