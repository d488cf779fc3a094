"""Training texts: the first bytes of a regular UTF-8 file."""

import os

import pytest

from purestep.demos.shared import reading
from purestep.demos.shared.reading import read_text


def test_of_a_large_file_the_first_part_is_read_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST", 5000)
    path, said = tmp_path / "text", []
    path.write_text("é" * 2600)  # 5,200 bytes
    assert read_text(str(path), said.append) == "é" * 2500
    assert said == [f"--data reads the first 5,000 bytes of {path}, which has 5,200"]
    path.write_text("a" + "é" * 2600)  # the cut is in the middle of a character
    assert read_text(str(path), said.append) == "a" + "é" * 2499
    path.write_text("a" * 5000)
    assert read_text(str(path), said.append) == "a" * 5000
    assert len(said) == 2


def test_a_file_of_a_terabyte_is_read_in_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST", 5000)
    path, said = tmp_path / "sparse", []
    with path.open("wb") as file:
        file.truncate(10**12)
    assert len(read_text(str(path), said.append)) == 5000
    assert said[0].endswith("which has 1,000,000,000,000")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in (
        (tmp_path, "directory"),
        (tmp_path / "fifo", "pipe"),
        ("/dev/zero", "pipe or a device"),
    ):
        with pytest.raises(ValueError, match=f"demo: --data .* file, {path} is a {kind}"):
            read_text(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ".*2000 characters, .* has 0"),
        (b"ok" * 2000 + b"\xff\xfe", ".*UTF-8 .* byte 4000 "),
        (b"ok" * 2000 + "é".encode()[:1], ".*UTF-8 .* byte 4000 "),
        ("".join(map(chr, range(0x4E00, 0x5800))).encode(), ".*2500 different .* has 2560"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_learned_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(reading, "MOST_SYMBOLS", 2500)
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=f"demo: --data {message}"):
        read_text(str(tmp_path / "text"))


def test_line_ends_are_read_as_python_reads_them(tmp_path):
    (tmp_path / "text").write_bytes(b"one\r\ntwo\rthree\n" * 200)
    assert read_text(str(tmp_path / "text")) == (tmp_path / "text").read_text(encoding="utf-8")
