"""Headers that a forger wrote to take memory: at most twice the size of what is read, whatever it says.

Python's objects take ten or twenty times the text that describes them: none may be made before it is checked.
"""

import json
import struct
import tracemalloc

import mlx.core as mx
import msgpack
import pytest

from purestep import replay
from purestep._checkpoint.format import checksum, header
from purestep._replay import bundle
from purestep.checkpoint import CorruptError, from_bytes, load, save, to_bytes
from tests.trees import same_bits

N = 6000
NONE, ONE = '["none"]', '["array","int8",[1]]'


def sealed(body):
    return f'{{"format":2,"digest":"{checksum.of(body.encode())}",\n"content":{body}}}'


def content(tree, sums=""):
    return f'{{"tree":{tree},"checksums":{{{sums}}}}}'


def many(text, count=N):
    return ",".join([text] * count)


def numbered(text, count=N):
    return ",".join(text % number for number in range(count))


CONTENTS = {
    "lists": content(f"[{many('[]', 30_000)}]"),
    "one array too many": content(f'["list",[{many(NONE)},["array","int8",[1]]]]'),
    "arrays without checksums": content(f'["list",[{many(ONE)}]]'),
    "arrays that are not there": content(f'["list",[{many(ONE)}]]', numbered('"%d":"crc32:0"')),
    "checksums without arrays": content('["none"]', numbered('"%d":"crc32:0"')),
    "a long path to many": content(
        f'["dict",[["{"x" * 9000}",["list",[{many(ONE.replace("1", "0"), 200)}]]]]]'
    ),
    "a long key": content(f'["dict",[["{"x" * 400_000}",["none"]]]]'),
    "an escaped key": content(f'["dict",[["{"é" * 200_000}",["none"]]]]'.replace("é", "\\u00e9")),
    "one key many times": content(f'["dict",[{many("""["a",["none"]]""")}]]'),
    "digits": content(f'["array","int8",[{"9" * 400_000}]]'),
    "axes": content(f'["array","int8",[{many("1", 100_000)}]]'),
    "axes of a member": content(f'["dict",[["a",["array","int8",[{many("1", 100_000)}]]]]]'),
    "deep": content('["list",[' * 30_000 + '["none"]' + "]]" * 30_000),
    "deep, no tree": content("[" * 200_000 + "]" * 200_000),
    "other members": f"{{{numbered(chr(34) + '%d' + chr(34) + ':0')}}}",
    "no object": many("[]", 30_000),
}


def check(read, size, error=ValueError):
    tracemalloc.start()
    with pytest.raises(error, match=r"^(checkpoint|replay)\.\w+: ") as caught:
        read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert type(caught.value) is error
    assert peak < 2 * size + 300_000, f"{peak} bytes for {size}"


@pytest.mark.parametrize("name", CONTENTS)
def test_a_sealed_header_that_is_not_sound_takes_no_memory(name, tmp_path):
    text = sealed(CONTENTS[name])
    data = msgpack.packb(["purestep", text])
    check(lambda: from_bytes(data), len(data), CorruptError)
    file = tmp_path / "s.safetensors"
    mx.save_safetensors(str(file), {}, {"format": "mlx", "purestep": text})
    check(lambda: load(file), file.stat().st_size, CorruptError)


def safetensors(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


EMPTY = '{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
HEADERS = {
    "lists": f'{{"a":[{many("[]", 30_000)}]}}',
    "deep": '{"a":' * 100_000,
    "arrays": f"{{{numbered(chr(34) + '%d' + chr(34) + ':' + EMPTY)}}}",
    "one name many times": f"{{{many(chr(34) + 'a' + chr(34) + ':' + EMPTY)}}}",
    "no arrays": f"{{{numbered(chr(34) + '%d' + chr(34) + ':{}')}}}",
    "metadata": f'{{"__metadata__":{{{numbered(chr(34) + "%d" + chr(34) + ":" + chr(34) * 2)}}}}}',
    "long metadata": f'{{"__metadata__":{{"a":"{"a" * 400_000}\U0001f600"}}}}',
    "a long name": f'{{"{"a" * 400_000}":1}}',
    "digits": f'{{"a":{{"dtype":"I8","shape":[{"9" * 400_000}],"data_offsets":[0,0]}}}}',
    "axes": f'{{"a":{{"dtype":"I8","shape":[{many("1", 100_000)}],"data_offsets":[0,1]}}}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_of_a_file_takes_no_memory(name, tmp_path):
    file = tmp_path / "s.safetensors"
    file.write_bytes(safetensors(HEADERS[name].encode(), b"\0"[: name == "axes"]))
    sound = name in ("arrays", "long metadata")  # and not purestep's
    check(lambda: load(file), file.stat().st_size, ValueError if sound else CorruptError)


@pytest.mark.parametrize("text", [many("[]", 30_000), numbered('"%d":[]')])
def test_a_hostile_index_takes_no_memory(text, tmp_path):
    index = tmp_path / "s.safetensors.index.json"
    for form in (
        '{"metadata":[%s],"weight_map":{}}',
        '{"weight_map":{%s}}',
        '{"metadata":{"a":[%s]}}',
        "[%s]",
    ):
        index.write_text(form % text)
        check(lambda: load(tmp_path / "s.safetensors"), index.stat().st_size, CorruptError)


@pytest.mark.parametrize("junk", [[[]] * 20_000, {str(n): 0 for n in range(N)}, "x" * 400_000])
def test_a_hostile_bundle_takes_no_memory(junk, tmp_path):
    path = bundle.write(tmp_path, 1, {}, {}, {}, {}, ())
    manifest = path / "manifest.json"
    whole = json.loads(manifest.read_text())["content"]
    for member in ("metadata", "metrics", "versions", "files"):
        facts = {"replay": junk} if member == "metadata" else junk
        manifest.write_text(header.seal({**whole, member: facts}))
        check(lambda: replay.load(path), manifest.stat().st_size, CorruptError)


def test_nested_lists_of_msgpack_take_no_memory():
    for depth, count in ((500, 2500), (1, 500_000), (100_000, 0)):
        data = (b"\xdd" + struct.pack(">I", count)) * depth + b"\x90" * 20_000
        check(lambda data=data: from_bytes(data), len(data), CorruptError)


def test_a_state_of_20_000_arrays_is_read(tmp_path):
    value = {"params": {f"layers.{number}": mx.array(number) for number in range(20_000)}}
    save(tmp_path / "s", value)
    assert same_bits(load(tmp_path / "s"), value)
    assert same_bits(from_bytes(to_bytes(value)), value)
