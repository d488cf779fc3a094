"""Checksums with and without the optional library."""

import subprocess
import sys

import mlx.core as mx

from purestep._checkpoint.format import checksum
from purestep.checkpoint import load, save

LOAD = """
import sys
sys.modules["xxhash"] = None
from purestep.checkpoint import load
try:
    load(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_a_checksum_whose_library_is_missing_says_what_to_install(tmp_path):
    save(tmp_path / "s", {"w": mx.ones(3)})
    said = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "s"], capture_output=True, text=True, check=True
    )
    assert "xxhash is not installed: pip install 'purestep[fast]'" in said.stdout


def test_without_xxhash_crc32_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(checksum, "xxhash", None)
    save(tmp_path / "s", {"w": mx.ones(3)})
    monkeypatch.undo()
    assert load(tmp_path / "s", like={"w": mx.zeros(3)})["w"].tolist() == [1.0, 1.0, 1.0]
    assert b"crc32:" in (tmp_path / "s").read_bytes()
