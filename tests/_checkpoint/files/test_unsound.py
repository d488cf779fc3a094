"""Files that are cut, foreign or lie about their arrays: refused, with the file and the reason."""

import errno
import json
import struct
from pathlib import Path

import mlx.core as mx
import pytest

from purestep._checkpoint.format import checksum
from purestep._checkpoint.format.header import seal
from purestep.checkpoint import CorruptError, load, save
from tests._checkpoint.damage import raising
from tests.training import start


def test_files_cut_at_any_length_are_refused(tmp_path):
    save(tmp_path / "s", start())
    data = (tmp_path / "s").read_bytes()
    for length in [*range(0, 40), *range(40, len(data), 97), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(CorruptError, match=r"^checkpoint.load: .*cut is cut .*safetensors"):
            load(tmp_path / "cut", like=start())


def test_foreign_and_missing_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint, but long enough to hold a header's length")
    with pytest.raises(ValueError, match="^checkpoint.load: .*/text is cut .*safetensors"):
        load(tmp_path / "text", like=start())
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"w": mx.ones(3)})
    with pytest.raises(ValueError, match=r"other\.safetensors .*safetensors .*load_weights.*mx\.load"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="^checkpoint.load: no file .*/absent$"):
        load(tmp_path / "absent", like=start())
    with pytest.raises(FileNotFoundError, match=f"^checkpoint.load: no file .*{tmp_path}$"):
        load(tmp_path, like=start())


TREE = ["dict", [["w", ["array", "float32", [3]]]]]

SUMS = {"w": checksum.of(checksum.raw(mx.ones(3)))}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "s.safetensors .*not written"),
        ('{"format":2,', "damaged: .*header .*cut"),
        (
            seal({"tree": TREE}).replace('"format":2', '"format":99'),
            "format 99, .*newer purestep",
        ),
        (seal({"tree": 3}), "damaged: .*tree"),
        (seal({"tree": ["dict", [["w"]]]}), "damaged: .*tree"),
        (seal({"tree": TREE}), "damaged: .*same arrays"),
        (seal({"tree": TREE, "checksums": {"v": "crc32:0"}}), "damaged: .*same arrays"),
        (seal({"tree": TREE, "checksums": SUMS}).replace('"w"', '"v"'), "damaged: .*digest"),
        (seal({"tree": TREE, "checksums": {"w": "crc32:00000000"}}), "w in .* is damaged: .*checksum"),
        (seal({"tree": TREE, "checksums": {"w": "md9:0"}}), "w in .*no checksum 'md9'"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, message):
    metadata = {"purestep": header, "format": "mlx"}
    mx.save_safetensors(str(tmp_path / "s.safetensors"), {"w": mx.ones(3)}, metadata)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})


def test_arrays_that_are_not_those_of_the_header_are_refused(tmp_path):
    metadata = {"purestep": seal({"tree": TREE, "checksums": SUMS}), "format": "mlx"}
    for arrays_, message in (
        ({"v": mx.ones(3)}, "s.safetensors is damaged: .*arrays .*header"),
        ({"w": mx.ones(3), "x": mx.ones(1)}, "s.safetensors is damaged: .*arrays .*header"),
        ({"w": mx.ones(4)}, "s.safetensors is damaged: .*16 bytes, 12"),
        ({"w": mx.ones((1, 3))}, "s.safetensors is damaged: w .*dtype or shape"),
        ({"w": mx.ones(3, mx.int32)}, "s.safetensors is damaged: w .*dtype or shape"),
        ({"w": mx.zeros(3)}, "w in .* is damaged: .*checksum"),
    ):
        mx.save_safetensors(str(tmp_path / "s.safetensors"), arrays_, metadata)
        with pytest.raises(CorruptError, match=message):
            load(tmp_path / "s.safetensors", like={"w": mx.ones(3)})


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
    monkeypatch.setattr(mx, "load", raising(RuntimeError("[load_safetensors] Failed to open")))
    with pytest.raises(OSError, match=r"^checkpoint.load: .*/s cannot .*MLX \(.*Failed to open"):
        load(tmp_path / "s")
    monkeypatch.setattr(Path, "open", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match=r"checkpoint.load: .*/s cannot .*\(Input/output error\)$"):
        load(tmp_path / "s")
