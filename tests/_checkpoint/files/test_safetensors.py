"""States in a file: to the bit, or refused."""

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from safetensors import safe_open

import purestep as ps
from purestep._checkpoint.disk import atomic, lock, tensors
from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import seal
from purestep.checkpoint import CorruptError, load, save, to_bytes
from tests.training import TRANSFORM, classifier, ragged, start
from tests.trees import FLOATS, Pair, arrays, containers, same_bits

EVERY_DTYPE = {
    tuple_name: mx.zeros((2,), dtype)
    for tuple_name, dtype in {
        "bool": mx.bool_, "u8": mx.uint8, "i8": mx.int8, "u16": mx.uint16, "i16": mx.int16, "u32": mx.uint32,
        "i32": mx.int32, "u64": mx.uint64, "i64": mx.int64, "c64": mx.complex64,
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@given(value=containers(arrays((*FLOATS, mx.int32, mx.bool_))))
def test_a_round_trip_gives_the_same_bits(directory, value):
    save(directory / "state.safetensors", value)
    assert same_bits(load(directory / "state.safetensors", like=value), value)


def test_every_dtype_and_layout_survives(tmp_path):
    value = {
        **EVERY_DTYPE,
        "transposed": mx.arange(6).reshape(2, 3).T,
        "wide": mx.broadcast_to(mx.ones(1), (4,)),
    }
    save(tmp_path / "s", value)
    assert same_bits(load(tmp_path / "s", like=value), value)


def test_a_train_state_resumes_with_the_same_bits(tmp_path):
    step, state = ps.train_step(classifier, TRANSFORM, microbatches=2), start(seed=3)
    for number in range(3):
        state, _ = step(state, ragged(number))
    save(tmp_path / "new" / "state.safetensors", state)
    for number in range(3, 6):
        state, _ = step(state, ragged(number))
    resumed = load(tmp_path / "new" / "state.safetensors", like=start())
    assert type(resumed) is ps.TrainState
    for number in range(int(resumed.step), 6):
        resumed, _ = step(resumed, ragged(number))
    assert same_bits(resumed, state)


def test_params_carry_their_paths_as_names_for_any_reader(tmp_path):
    save(tmp_path / "s.safetensors", start())
    names = set(mx.load(str(tmp_path / "s.safetensors")))
    assert {"params.w", "params.b", "opt_state.1.0.mu.w", "step", "rng"} <= names


def test_what_was_loaded_does_not_change_with_the_file(tmp_path):
    save(tmp_path / "s", {"w": mx.ones(3)})
    loaded = load(tmp_path / "s", like={"w": mx.zeros(3)})
    (tmp_path / "s").write_bytes(b"\0" * os.path.getsize(tmp_path / "s"))
    assert loaded["w"].tolist() == [1.0, 1.0, 1.0]


def test_dict_order_does_not_matter(tmp_path):
    save(tmp_path / "s", {"a": mx.array(1), "b": mx.array(2)})
    assert load(tmp_path / "s", like={"b": mx.array(0), "a": mx.array(0)})["b"].item() == 2


def test_every_mismatch_is_listed_by_path(tmp_path):
    save(tmp_path / "s", {"w": mx.ones(3), "old": mx.ones(1), "p": Pair(mx.ones(1), None)})
    like = {"w": mx.ones((3, 1), mx.bfloat16), "new": mx.ones(1), "p": (mx.ones(1), None)}
    with pytest.raises(ValueError, match="does not fit like") as error:
        load(tmp_path / "s", like=like)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "w has shape (3,) in the file, (3, 1) in like",
        "w has dtype float32 in the file, bfloat16 in like",
        "old is in the file, not in like",
        "p is a Pair in the file, a tuple in like",
        "new is in like, not in the file",
    ]


def test_files_cut_at_any_length_are_refused(tmp_path):
    save(tmp_path / "s", start())
    data = (tmp_path / "s").read_bytes()
    for length in [*range(0, 40), *range(40, len(data), 97), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(CorruptError, match=r"^checkpoint.load: .*cut is cut or not a safetensors file"):
            load(tmp_path / "cut", like=start())


def test_foreign_and_missing_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint, but long enough to hold a header's length")
    with pytest.raises(ValueError, match="cut or not a safetensors file"):
        load(tmp_path / "text", like=start())
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"w": mx.ones(3)})
    with pytest.raises(ValueError, match=r"other\.safetensors is a sound safetensors file that .* mx\.load"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="^checkpoint.load: no file at .*absent"):
        load(tmp_path / "absent", like=start())
    with pytest.raises(FileNotFoundError, match="no file at"):
        load(tmp_path, like=start())


TREE = ["dict", [["w", ["array", "float32", [3]]]]]
SUMS = {"w": checksum.of(checksum.raw(mx.ones(3)))}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "was not written by purestep"),
        ('{"format":2,', "its header is cut or changed"),
        (
            seal({"tree": TREE}).replace('"format":2', '"format":99'),
            "has format 99, .* a newer purestep wrote it",
        ),
        (seal({"tree": 3}), "it does not describe a tree"),
        (seal({"tree": ["dict", [["w"]]]}), "it does not describe a tree"),
        (seal({"tree": TREE}), "does not name the same arrays twice"),
        (seal({"tree": TREE, "checksums": {"v": "crc32:0"}}), "does not name the same arrays twice"),
        (seal({"tree": TREE, "checksums": SUMS}).replace('"w"', '"v"'), "does not have the digest it names"),
        (seal({"tree": TREE, "checksums": {"w": "crc32:00000000"}}), "w in .* is damaged: its bytes"),
        (seal({"tree": TREE, "checksums": {"w": "md9:0"}}), "cannot be verified: there is no checksum 'md9'"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, message):
    metadata = {"purestep": header, "format": "mlx"}
    mx.save_safetensors(str(tmp_path / "s.safetensors"), {"w": mx.ones(3)}, metadata)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})


def test_a_checksum_whose_library_is_missing_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "s", {"w": mx.ones(3)})
    monkeypatch.setattr(checksum, "_KNOWN", {"crc32": checksum._KNOWN["crc32"]})
    with pytest.raises(ValueError, match=r"xxhash is not installed: pip install 'purestep\[fast\]'"):
        load(tmp_path / "s", like={"w": mx.ones(3)})


def test_without_xxhash_crc32_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(checksum, "xxhash", None)
    save(tmp_path / "s", {"w": mx.ones(3)})
    monkeypatch.undo()
    assert load(tmp_path / "s", like={"w": mx.zeros(3)})["w"].tolist() == [1.0, 1.0, 1.0]
    assert b"crc32:" in (tmp_path / "s").read_bytes()


def test_arrays_that_are_not_those_of_the_header_are_refused(tmp_path):
    metadata = {"purestep": seal({"tree": TREE, "checksums": SUMS}), "format": "mlx"}
    for arrays_, message in (
        ({"v": mx.ones(3)}, "its arrays are not those its header names"),
        ({"w": mx.ones(3), "x": mx.ones(1)}, "its arrays are not those its header names"),
        ({"w": mx.ones(4)}, "its arrays are not those its header names: 16 bytes, 12 were written"),
        ({"w": mx.ones((1, 3))}, "w has another dtype or shape"),
        ({"w": mx.ones(3, mx.int32)}, "w has another dtype or shape"),
        ({"w": mx.zeros(3)}, "its bytes do not have the checksum"),
    ):
        mx.save_safetensors(str(tmp_path / "s.safetensors"), arrays_, metadata)
        with pytest.raises(CorruptError, match=message):
            load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})


def test_a_large_state_is_divided_with_an_index_that_the_ecosystem_reads(tmp_path):
    value = {"a": mx.arange(10), "b": {"c": mx.ones((2, 3)), "d": None}, "e": mx.zeros(100)}
    save(tmp_path / "m.safetensors", value, shard_bytes=64)
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "m.safetensors.index.json"]
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": names[0], "b.c": names[0], "e": names[1]}
    assert index["metadata"]["total_size"] == 4 * (10 + 6 + 100)
    for key, name in index["weight_map"].items():
        with safe_open(tmp_path / name, framework="numpy") as file:
            assert key in file.keys()  # noqa: SIM118, it is no dict
    assert same_bits(load(tmp_path / "m.safetensors.index.json", like=value), value)
    with pytest.raises(FileExistsError, match=r"already holds m\.safetensors\.index\.json"):
        save(tmp_path / "m.safetensors", value, shard_bytes=64)
    (tmp_path / names[1]).unlink()
    with pytest.raises(CorruptError, match="00002-of-00002.safetensors is missing"):
        load(tmp_path / "m.safetensors.index.json", like=value)


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    save(tmp_path / "m.safetensors", {"a": mx.arange(10), "b": mx.arange(10)}, shard_bytes=40)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(index.read_text().replace('"m-00001', '"../m-00001'))
    with pytest.raises(
        ValueError, match="names '../m-00001-of-00002.safetensors', which is not in its directory"
    ):
        load(index)
    for text in ("[]", "{", "[" * 100_000, '{"metadata":{},"weight_map":{}}'):
        index.write_text(text)
        with pytest.raises(CorruptError, match="not an index|was not written by purestep"):
            load(index)


def test_a_model_exported_alone_has_its_own_names(tmp_path):
    with ps.rng.scope(mx.random.key(0)):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    _, params, _ = ps.functional(model)
    save(tmp_path / "model.safetensors", ps.tree.map(mx.ones_like, params))
    model.load_weights(str(tmp_path / "model.safetensors"))
    assert model.layers[1].weight.tolist() == [[1.0, 1.0, 1.0]]


def test_an_array_written_in_place_after_the_save_began_is_saved_as_it_was(tmp_path):
    value = {"w": mx.ones(3)}
    arrays_ = tensors.snapshot(value)
    value["w"][0] = 5.0
    assert arrays_["w"].tolist() == [1.0, 1.0, 1.0]


def test_leaves_that_are_not_arrays_are_refused_by_path(tmp_path):
    with pytest.raises(TypeError, match=r"^checkpoint.save: state\.a\.0 is the Python number 1"):
        save(tmp_path / "s", {"a": [1]})
    assert not list(tmp_path.iterdir())
    save(tmp_path / "s", {"a": [mx.array(1)]})
    with pytest.raises(TypeError, match=r"^checkpoint.load: like\.a\.0 is the Python number 1"):
        load(tmp_path / "s", like={"a": [1]})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save(tmp_path / "s.safetensors", {"w": mx.ones(3)})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "s.safetensors", {"w": mx.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]
    assert load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})["w"].tolist() == [1.0, 1.0, 1.0]


def test_data_and_directory_are_flushed_around_the_rename(tmp_path, monkeypatch):
    order = []
    flush, replace = atomic.flush, type(tmp_path).replace
    monkeypatch.setattr(atomic, "flush", lambda path: order.append(("flush", path.is_dir())) or flush(path))
    monkeypatch.setattr(
        type(tmp_path),
        "replace",
        lambda self, target: order.append(("rename", target.name)) or replace(self, target),
    )
    save(tmp_path / "s", {"w": mx.ones(3)})
    assert order[-3:] == [("flush", False), ("rename", "s"), ("flush", True)]


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "s.safetensors", {"w": mx.ones(3)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save(tmp_path / "folder", {"w": mx.ones(3)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"__metadata__": mx.ones(1)}, r"state\.__metadata__ has a name that safetensors keeps for itself"),
        ({"params": {"__metadata__": mx.ones(1)}}, r"state\.params\.__metadata__ has a name that"),
        ({"a": [mx.ones(1, mx.float64, stream=mx.cpu)]}, r"state\.a\.0 is float64, .* cast it to float32"),
        (mx.ones(1, mx.float64, stream=mx.cpu), "state is float64"),
        ({"a": {"\ud800": mx.ones(1)}}, r"'state\.a\.\\ud800' has a lone surrogate in a key"),
    ],
)
def test_arrays_that_no_file_could_give_back_are_refused_before_anything_is_written(tmp_path, value, message):
    with pytest.raises(ValueError, match="^checkpoint.save: " + message):
        save(tmp_path / "s", value)
    with pytest.raises(ValueError, match="^Checkpointer.save: " + message):
        tensors.snapshot(value, "Checkpointer.save")
    assert not list(tmp_path.iterdir())


ONE, TWO = {"a": mx.zeros(10), "b": mx.zeros(10)}, {"a": mx.ones(10), "b": mx.ones(10)}


def test_one_name_never_stands_for_two_states(tmp_path):
    file, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    save(file, ONE)
    for name in (file, tmp_path / "m"):
        with pytest.raises(FileExistsError, match=r"already holds m\.safetensors: delete that state first"):
            save(name, TWO, shard_bytes=40)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
    file.unlink()
    save(file, TWO, shard_bytes=40)
    with pytest.raises(FileExistsError, match=r"already holds m\.safetensors\.index\.json"):
        save(file, ONE)
    assert same_bits(load(file), TWO)
    save(tmp_path / "n.safetensors", ONE)
    (tmp_path / "n.safetensors").rename(file)
    with pytest.raises(ValueError, match="are two states of one name: remove the older"):
        load(file)
    assert same_bits(load(index), TWO)


def test_files_of_a_divided_save_that_was_killed_do_not_block_the_next(tmp_path):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    (tmp_path / "m.safetensors.index.json").unlink()
    save(tmp_path / "m.safetensors", TWO, shard_bytes=40)
    assert same_bits(load(tmp_path / "m.safetensors", like=ONE), TWO)


def test_one_of_several_files_names_the_index(tmp_path):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    with pytest.raises(
        ValueError, match=r"one of several files of a state: load m\.safetensors\.index\.json"
    ):
        load(tmp_path / "m-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["..", ".", "", "/etc/passwd", "a/b", "a\0"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    save(tmp_path / "m.safetensors", ONE, shard_bytes=40)
    index = tmp_path / "m.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["a"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="which is not in its directory"):
        load(index)


@pytest.mark.parametrize("header", [3, [1], {"format": 2}, None, ["[" * 50]])
def test_an_index_whose_header_is_no_text_is_refused(tmp_path, header):
    index = tmp_path / "m.safetensors.index.json"
    for content in (
        {"metadata": {"purestep": header}, "weight_map": {}},
        {"metadata": {}, "weight_map": {"a": 3}},
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(CorruptError, match="was not written by purestep|not an index"):
            load(index)


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_dtypes_of_other_libraries_are_damage(tmp_path, dtype, size):
    content = {
        "__metadata__": {"format": "mlx", "purestep": seal({"tree": TREE, "checksums": SUMS})},
        "w": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]},
    }
    text = json.dumps(content).encode()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(3 * size))
    with pytest.raises(
        CorruptError, match=r"^checkpoint\.load: .*s\.safetensors (is damaged|cannot be read)"
    ):
        load(tmp_path / "s.safetensors")


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch):
    save(tmp_path / "s", {"w": mx.ones(3)})

    def vanished(path, **_):
        raise RuntimeError("[load_safetensors] Failed to open")

    def broken(path, *_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mx, "load", vanished)
    with pytest.raises(OSError, match=r"^checkpoint.load: .*/s cannot be read by MLX \(.*Failed to open"):
        load(tmp_path / "s")
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(OSError, match=r"checkpoint.load: .*/s cannot be read \(Input/output error\)$"):
        load(tmp_path / "s")


KILLED = """
import os, sys
import mlx.core as mx
from purestep._checkpoint.disk import atomic
from purestep.checkpoint import save
atomic.flush = lambda path: os.kill(os.getpid(), 9)
save(sys.argv[1] + "/s.safetensors", {"w": mx.ones(3)})
"""


def test_temporaries_of_dead_writers_are_removed_and_no_others(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    host = lock.host()
    others = [
        f".s.safetensors.{host}.{os.getppid()}.0a1b2c3d.tmp.safetensors",  # alive
        f".s.safetensors.{host}x.999999999.0a1b2c3d.tmp.safetensors",  # of another host
        f".t.safetensors.{host}.999999999.0a1b2c3d.tmp.safetensors",  # of another file
        ".s.safetensors.notes.tmp",
    ]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f".s.safetensors.{host}.999999999.0a1b2c3d.tmp").touch()
    save(tmp_path / "s.safetensors", {"w": mx.ones(3)})
    assert {entry.name for entry in tmp_path.iterdir()} == {"s.safetensors", *others}


def test_files_get_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "s", {"w": mx.ones(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("write", [lambda tree: save("never", tree), to_bytes], ids=["file", "bytes"])
def test_a_tree_too_deep_to_be_read_back_is_refused(write):
    value = mx.ones(1)
    for _ in range(300):
        value = {"a": value}
    with pytest.raises(ValueError, match="state must be nested at most 100 containers deep"):
        write(value)
