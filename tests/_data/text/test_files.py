"""Files of tokens, and text files that are turned into them."""

import json
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from purestep._data.text.tokenizing import pieces
from purestep.data import Characters, TokenFile, tokenize_file

DTYPES = ["uint8", "uint16", "uint32", "int32", "int64"]


class Words:
    """A tokenizer that divides as GPT-2 does: words take the space before them."""

    vocab_size = 50_000

    def encode(self, text):
        import re

        parts = re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+", text)
        return [sum(part.encode()) % 50_000 for part in parts]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_read_as_they_were_written(tmp_path, dtype):
    tokens = np.random.default_rng(0).integers(0, 255, 1000)
    written = TokenFile.write(
        tmp_path / "tokens.bin", [tokens[:10], mx.array(tokens[10:900]), tokens[900:].tolist()], dtype=dtype
    )
    raw = np.fromfile(tmp_path / "tokens.bin", dtype)
    assert raw.tolist() == tokens.tolist()
    for file in (written, TokenFile(tmp_path / "tokens.bin"), TokenFile(tmp_path / "tokens.bin", dtype)):
        assert (len(file), file.dtype) == (1000, dtype)
        assert file.read(3, 50).tolist() == tokens[3:50].tolist()
        assert file.windows([990, 0, 5], 10).tolist() == [tokens[i : i + 10].tolist() for i in (990, 0, 5)]
        assert str(file.read(0, 1).dtype) == f"mlx.core.{dtype}"
        assert file.read(7, 7).shape == (0,)
        assert mx.concatenate(list(file.pieces(64))).tolist() == tokens.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_of_numpy_and_files_with_a_header_are_read(tmp_path, dtype):
    tokens = np.arange(200, dtype=dtype)
    np.save(tmp_path / "tokens.npy", tokens)
    assert TokenFile(tmp_path / "tokens.npy").read(0, 200).tolist() == tokens.tolist()
    (tmp_path / "raw").write_bytes(b"h" * 1024 + tokens.tobytes())
    assert TokenFile(tmp_path / "raw", dtype, header=1024).read(0, 200).tolist() == tokens.tolist()


def test_a_file_that_does_not_fit_its_description_is_refused(tmp_path):
    path = tmp_path / "tokens.bin"
    TokenFile.write(path, [range(1000)], dtype="uint16")
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"^TokenFile: dtype .* 'uint16', as .* got 'uint32'$"):
        TokenFile(path, "uint32")
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"^TokenFile: .*tokens.bin .*1000 tokens, .*got 950: .* truncated"):
        TokenFile(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=r"^TokenFile: .*tokens.bin .*uint16 tokens .*got 1999 bytes: .* truncated"
    ):
        TokenFile(path)
    (tmp_path / "tokens.bin.json").write_text(json.dumps({"format": "purestep.tokens", "dtype": "uint17"}))
    with pytest.raises(ValueError, match=r"^TokenFile: .*tokens.bin.json .*description .*uint17"):
        TokenFile(path)
    np.save(tmp_path / "cut.npy", np.arange(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"^TokenFile: .*cut.npy .*1000 tokens, .*got 999"):
        TokenFile(tmp_path / "cut.npy")
    for wrong in (np.zeros((2, 2), np.uint16), np.zeros(3, np.float32), np.zeros(3, ">u2")):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match=r"^TokenFile: .*wrong.npy .*little-endian .*\[length\] .*uint8"):
            TokenFile(tmp_path / "wrong.npy")


def test_a_raw_file_needs_the_dtype_that_it_has(tmp_path):
    np.arange(1000, dtype="uint32").tofile(tmp_path / "raw")
    with pytest.raises(ValueError, match="^TokenFile: dtype .*description, .*raw "):
        TokenFile(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"^TokenFile: dtype .*raw, got 'uint16', .* uint32 tokens$"):
        TokenFile(tmp_path / "raw", "uint16")
    with pytest.raises(ValueError, match="^TokenFile: .*raw .*uint32 tokens .*2 bytes .*got 4000 bytes"):
        TokenFile(tmp_path / "raw", "uint32", header=2)
    with pytest.raises(ValueError, match="^TokenFile: .*raw .*uint32 tokens .*8000 bytes .*got 4000 bytes"):
        TokenFile(tmp_path / "raw", "uint32", header=8000)
    with pytest.raises(ValueError, match="^TokenFile: dtype .* uint8, .*, got 'float32'"):
        TokenFile(tmp_path / "raw", "float32")
    with pytest.raises(FileNotFoundError, match="absent"):
        TokenFile(tmp_path / "absent", "uint16")


def test_reading_outside_the_file_or_of_a_file_that_shrank_is_refused(tmp_path):
    file = TokenFile.write(tmp_path / "tokens.bin", [range(100)], dtype="uint16")
    with pytest.raises(ValueError, match="TokenFile.read: stop .* 100 tokens, got 101"):
        file.read(0, 101)
    with pytest.raises(ValueError, match="TokenFile.read: stop .* 5, got 4"):
        file.read(5, 4)
    with pytest.raises(ValueError, match=r"TokenFile.windows: starts .*\[0, 90\] .*length=10, got 91"):
        file.windows([0, 91], 10)
    with (tmp_path / "tokens.bin").open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(ValueError, match="^TokenFile: .*tokens.bin .*100 tokens .*truncated"):
        file.read(0, 100)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "tokens.bin"
    TokenFile.write(path, [[1, 2, 3]], dtype="uint16")
    with pytest.raises(ValueError, match="TokenFile.write: tokens .*uint16, got 65536 at position 5"):
        TokenFile.write(path, [[1, 2, 3, 4], [5, 65536]], dtype="uint16")
    with pytest.raises(ValueError, match=r"TokenFile.write: tokens .*uint8, got 1.5 at position 0"):
        TokenFile.write(path, [[1.5]], dtype="uint8")
    with pytest.raises(ValueError, match="TokenFile.write: pieces .*one token, got none"):
        TokenFile.write(path, [], dtype="uint8")
    assert TokenFile(path).read(0, 3).tolist() == [1, 2, 3]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["tokens.bin", "tokens.bin.json"]


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_the_tokens_of_a_text_do_not_depend_on_the_pieces(tmp_path, piece):
    choose = random.Random(piece)
    text = "".join(
        choose.choice(["word", "zwölf", " ", "  ", "\n", "\n\n", ".", ", ", "日本"]) for _ in range(500)
    )
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    assert "".join(pieces("caller", tmp_path / "text.txt", piece)) == text
    characters = Characters.of(text)
    file = tokenize_file(tmp_path / "text.txt", characters, tmp_path / "out", piece=piece)
    assert file.read(0, len(file)).tolist() == characters.encode(text).tolist()
    assert (file.dtype, file.tokenizer) == ("uint16", "Characters")
    if piece >= 64:  # so that a piece has a word
        file = tokenize_file(tmp_path / "text.txt", Words(), tmp_path / "out", piece=piece)
        assert file.read(0, len(file)).tolist() == Words().encode(text)
    assert all(len(each) <= 2 * piece + 40 for each in pieces("caller", tmp_path / "text.txt", piece))


def test_texts_follow_each_other_with_an_end_token(tmp_path):
    for name, text in (("a", "ab"), ("b", "ba")):
        (tmp_path / name).write_text(text)
    file = tokenize_file(
        [tmp_path / "a", tmp_path / "b"], Characters("ab"), tmp_path / "out", end_token=9, dtype="uint8"
    )
    assert file.read(0, len(file)).tolist() == [0, 1, 9, 1, 0, 9]


def test_texts_and_tokenizers_that_do_not_fit_are_refused(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "latin").write_bytes(b"abc " * 1000 + "é".encode("latin1") + b" abc" * 1000)
    for piece in (5, 100, 100_000):
        with pytest.raises(
            ValueError, match=r"^tokenize_file: .*latin .* UTF-8, got byte 0xe9 at position 4000$"
        ):
            tokenize_file(tmp_path / "latin", Characters("abc "), out, piece=piece)
    (tmp_path / "cut").write_bytes("abcé".encode()[:-1])
    with pytest.raises(ValueError, match=r"^tokenize_file: .*cut .* UTF-8, got byte 0xc3 at position 3$"):
        tokenize_file(tmp_path / "cut", Characters("abcé"), out)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="^tokenize_file: .*/empty .* empty$"):
        tokenize_file(tmp_path / "empty", Characters("abc"), out)
    with pytest.raises(TypeError, match="^tokenize_file: tokenizer .* encode, got int"):
        tokenize_file(tmp_path / "cut", 5, out)
    (tmp_path / "text").write_text("zebra")
    with pytest.raises(ValueError, match="Characters.encode: text .*vocabulary, got 'erz'"):
        tokenize_file(tmp_path / "text", Characters("abc"), out)
    assert not out.exists()


def test_a_tokenizer_of_the_ecosystem_writes_no_marks(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "b": 2}, unk_token="<s>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    wrapped = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>"
    )
    assert inner.encode("a b").ids == [0, 1, 2]
    Path(tmp_path / "text").write_text("a b a")
    for tokenizer in (inner, wrapped):
        file = tokenize_file(tmp_path / "text", tokenizer, tmp_path / "out", piece=1)
        assert file.read(0, len(file)).tolist() == [1, 2, 1]
        assert file.dtype == "uint16"


def test_a_part_of_a_file_is_read_like_a_file_and_keeps_it_open(tmp_path):
    part = TokenFile.write(tmp_path / "tokens.bin", [range(100)], dtype="uint16")[10:90]
    assert len(part) == 80
    assert part[5:-5].read(0, 70).tolist() == list(range(15, 85))
    assert part.windows([0, 78], 2).tolist() == [[10, 11], [88, 89]]
    assert len(part[90:]) == 0
    with pytest.raises(ValueError, match="stop .* 80 tokens, got 81"):
        part.read(0, 81)
    with pytest.raises(TypeError, match="part .*file\\[start:stop\\], got 3"):
        part[3]


def test_dtypes_that_do_not_fit_a_file_without_a_description_are_refused(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50_000, 4096)
    path = tmp_path / "tokens.bin"
    for written, read in (
        ("uint16", "uint32"),
        ("uint16", "int64"),
        ("uint32", "int64"),
        ("uint16", "int32"),
    ):
        tokens.astype(written).tofile(path)
        with pytest.raises(ValueError, match=f"^TokenFile: dtype .* got '{read}'.* narrower tokens"):
            TokenFile(path, read)
        assert TokenFile(path, written).read(0, 3).tolist() == tokens[:3].tolist()
    described = TokenFile.write(path, [tokens + 2**24], dtype="uint32")  # its writer said so
    assert described.read(0, 1).tolist() == [tokens[0] + 2**24]


def test_a_file_that_shrinks_or_grows_while_it_is_open(tmp_path):
    path = tmp_path / "tokens.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    file = TokenFile(path, "uint16")
    with path.open("ab") as other:
        other.write(b"abc")
    assert (len(file), file.read(998, 1000).tolist()) == (1000, [998, 999])
    with path.open("r+b") as other:
        other.truncate(999)
    assert file.windows([0, 400], 50)[1, 0].item() == 400
    with pytest.raises(ValueError, match="TokenFile: .*tokens.bin .* 1000 tokens .*truncated$"):
        file.windows([0, 490], 50)


def test_windows_of_a_file_are_checked(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    file = TokenFile(tmp_path / "tokens.bin", "uint16")
    assert file.windows(np.array([3, 90]), np.int8(10)).tolist() == [[*range(3, 13)], [*range(90, 100)]]
    for starts, length, message in (
        ([3], -1, "length .* 1, got -1"),
        ([3], 0, "length .* 1, got 0"),
        ([1.5], 2, "starts .*integer, got 1.5"),
        ([-1], 2, r"starts .*\[0, 98\] .*length=2, got -1"),
        ([0], 101, r"starts .*\[0, -1\] .*length=101, got 0"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^TokenFile.windows: {message}"):
            file.windows(starts, length)
    np.save(tmp_path / "tokens.npy", np.arange(10))
    with pytest.raises(ValueError, match="^TokenFile: header .* 0 .*numpy, got 8"):
        TokenFile(tmp_path / "tokens.npy", header=8)


def test_a_text_is_not_replaced_by_its_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.write_text("banana")
    (tmp_path / "link").symlink_to(text)
    (tmp_path / "o.json").write_text("banana")
    for paths, out in (("text", text), (text, "link"), ([text, "o.json"], "o")):
        with pytest.raises(ValueError, match="^tokenize_file: out .*another file"):
            tokenize_file(paths, Characters("abn"), out)
    assert text.read_text() == "banana"
    with pytest.raises(ValueError, match="^tokenize_file: paths .*one file, got none"):
        tokenize_file([], Characters("abn"), "out")
    with pytest.raises(TypeError, match="^tokenize_file: paths .*got b'text'"):
        tokenize_file(b"text", Characters("abn"), "out")


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_a_byte_order_mark_is_no_text(tmp_path, piece):
    (tmp_path / "text").write_bytes("\ufeffba\ufeffna na".encode())
    characters = Characters.of("\ufeff abn")
    file = tokenize_file(tmp_path / "text", characters, tmp_path / "out", piece=piece)
    assert characters.decode(file.read(0, len(file))) == "ba\ufeffna na"
