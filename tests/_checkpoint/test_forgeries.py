"""Stored states that somebody changed and sealed again: every checksum is right, what they say is not.

A forgery is refused in words, or gives exactly the tree that it describes. `--full` tries 3,000.
"""

import json
import random
import shutil
import tracemalloc
import warnings

import mlx.core as mx
import msgpack
import pytest

from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import seal
from purestep.checkpoint import Checkpointer, from_bytes, load, save, to_bytes
from purestep.testing import bits

STATE = {
    "params": {"w": mx.arange(300, dtype=mx.float32).reshape(20, 15), "b": mx.ones(7, mx.bfloat16)},
    "opt": (mx.zeros((3, 5)), [mx.array(3), None], mx.zeros((0, 4))),
    "key": mx.random.key(3),
}
WORDS = [
    "",
    "w",
    "params",
    "params.w",
    "a.b",
    "\x00",
    "\u202e",
    "__class__",
    "0",
    "x" * 3000,
    "é" * 9,
    "\ud800",
]
DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "uint64",
    "bool",
    "complex64",
    "float64",
    "object",
    "f32",
    "",
]
NUMBERS = [0, 1, 2, -1, 3, 300, 2**31, 2**62, 2**63, 10**30, 1.5, True, None, "3", float("nan"), 1e308]


def nodes(value):
    """Return every (container, position) of nested lists and dicts."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        many = isinstance(node, list)
        positions = list(node) if isinstance(node, dict) else range(len(node) if many else 0)
        found += [(node, position) for position in positions]
        waiting += [node[position] for position in positions]
    return found


def forged_value(draw, value):
    """Return another value in the place of one."""
    simple = {
        str: lambda: draw.choice([*WORDS, *DTYPES, value[:-1], value + "0"]),
        int: lambda: draw.choice([*NUMBERS, value + 1, value - 1, value * 2]),
        list: lambda: draw.choice([[], value[:-1], value + value, [value], value[::-1], {}, "list"]),
        dict: lambda: draw.choice([{}, [], dict(list(value.items())[:-1]), {**value, "more": 1}]),
    }
    return draw.choice(NUMBERS + WORDS) if draw.random() < 0.2 else simple.get(type(value), lambda: value)()


def forge(draw, content):
    """Change plain content in a few places."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = nodes(content)
        if places:
            container, position = draw.choice(places)
            container[position] = forged_value(draw, container[position])
            if draw.random() < 0.1 and isinstance(container, dict):
                container[draw.choice(WORDS)] = container.pop(position)
            if draw.random() < 0.05 and isinstance(container, list):
                container[position] = deep(draw.choice([50, 300]))


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def content_of(text):
    return json.loads(text)["content"]


def sealed_again(draw, text):
    content = content_of(text)
    forge(draw, content)
    try:
        return seal(content)
    except (RecursionError, ValueError):  # JSON cannot say it
        return text


def forge_bytes(draw, directory):
    path = directory / "s.msgpack"
    magic, header, *chunks = msgpack.unpackb(path.read_bytes())
    if draw.random() < 0.2:
        draw.shuffle(chunks)
    if draw.random() < 0.1:
        chunks = chunks[:-1]
    header = sealed_again(draw, header)
    path.write_bytes(
        msgpack.packb([magic, header.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), *chunks])
    )
    return lambda: from_bytes(path.read_bytes())


def forge_file(draw, directory):
    path = directory / "s.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw.random() < 0.5:
        header["__metadata__"]["purestep"] = sealed_again(draw, header["__metadata__"]["purestep"])
    else:
        metadata = header.pop("__metadata__")
        forge(draw, header)
        header["__metadata__"] = {**metadata, "purestep": summed_again(metadata["purestep"], header, body)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return lambda: load(path)


def summed_again(text, header, body):
    """Seal the checksums of the bytes that each array now has."""
    content = content_of(text)
    for name in content["checksums"]:
        try:
            start, stop = header[name]["data_offsets"]
            content["checksums"][name] = checksum.of(body[start:stop])
        except (TypeError, KeyError, ValueError):
            continue
    return seal(content)


def forge_index(draw, directory):
    path = directory / "d.safetensors.index.json"
    index = json.loads(path.read_text())
    if draw.random() < 0.5:
        index["metadata"]["purestep"] = sealed_again(draw, index["metadata"]["purestep"])
    else:
        forge(draw, index)
    path.write_bytes(json.dumps(index).encode())
    return lambda: load(directory / "d.safetensors")


def forge_manifest(draw, directory):
    path = directory / "run" / "step_00000007" / "manifest.json"
    path.write_bytes(sealed_again(draw, path.read_text()).encode("utf-8", "surrogatepass"))
    return lambda: Checkpointer(directory / "run").restore(7).state


FORGERS = [forge_bytes, forge_file, forge_index, forge_manifest]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    save(root / "s.safetensors", STATE)
    save(root / "d.safetensors", STATE, shard_bytes=600)
    (root / "s.msgpack").write_bytes(to_bytes(STATE))
    with Checkpointer(root / "run") as checkpointer:
        checkpointer.save(STATE, step=7, metrics={"loss": 0.5}, metadata={"epoch": 1})
    return root


def test_no_forgery_is_accepted_as_what_it_is_not(samples, tmp_path, full):
    draw = random.Random(2)
    written = {content for *_, content in bits(STATE)}
    wrong = []
    for number in range(3000 if full else 200):
        directory = tmp_path / "forged"
        shutil.copytree(samples, directory)
        forger = draw.choice(FORGERS)
        read = forger(draw, directory)
        total = sum(each.stat().st_size for each in directory.rglob("*") if each.is_file())
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        tracemalloc.start()
        said = f"{number} {forger.__name__}: "
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read()
        except (ValueError, FileNotFoundError) as error:
            if not str(error).startswith(("checkpoint.", "Checkpointer")):
                wrong.append(said + repr(error))
        except Exception as error:
            wrong.append(said + repr(error))
        else:
            # Names and containers are the forger's to choose; the numbers are those that were sealed.
            strange = {content for *_, content in bits(found)} - written
            if strange and forger is not forge_file:
                wrong.append(said + "arrays that were never written")
            found = None
        peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - before
        tracemalloc.stop()
        if peak > 2 * total + 300_000:
            wrong.append(said + f"took {peak} bytes for {total}")
        shutil.rmtree(directory)
    assert not wrong, "\n".join(wrong)
