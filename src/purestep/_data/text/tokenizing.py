"""Turn text files into token files, of any size, in bounded memory."""

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from purestep._core import checks
from purestep._data.text import tokenizers
from purestep._data.text.files import TokenFile
from purestep._data.text.tokenizers import Tokenizer

_CALLER = "tokenize_file"
_MARK = "\ufeff"  # the byte-order mark, which some editors put before a text
# Pieces end before the white space behind a letter or digit: there the rules of GPT-2, Llama 3 and their
# relatives always divide. Otherwise behind a line, otherwise before any white space.
_ENDS = (
    re.compile(r".*\w(?=\s)", re.DOTALL),
    re.compile(r".*\n", re.DOTALL),
    re.compile(r".*(?=\s)", re.DOTALL),
)


def tokenize_file(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    end_token: int | None = None,
    piece: int = 1 << 20,
) -> TokenFile:
    """Tokenize UTF-8 text files into one token file.

    The text is read in pieces, so it may exceed the memory. A piece ends between a word and the white space
    behind it, so the tokens are those of the whole text for tokenizers that divide there (GPT-2, Llama 3,
    characters). A piece without such a place ends behind a line, otherwise before white space or anywhere.
    A tokenizer that adds a prefix to each text, as some of SentencePiece do, adds it to each piece. Marks of
    the beginning and the end that a tokenizer adds by itself are left out, and so is a byte-order mark.

    Args:
        paths: a text file, or several in order.
        tokenizer: any object with `encode(text)`, which returns integers or an integer array.
        out: the token file; it is complete or absent, and is described in `out` + ".json".
        dtype: as in `TokenFile.write`. `None`: "uint16" if the tokenizer has at most 65536 tokens,
            otherwise, or if it does not tell, "uint32".
        end_token: a token to write after each file. `None`: files follow each other directly.
        piece: characters of a piece, at least 1. Memory is about 100 bytes a character.

    Returns:
        The file, open.

    Raises:
        ValueError: if a file is empty or not UTF-8, or a token does not fit the dtype.
        TypeError: if the tokenizer has no `encode`.
        OSError: if a file cannot be read or written.

    >>> import tempfile
    >>> from purestep.data import Characters
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "text.txt").write_text("banana")
    >>> file = tokenize_file(folder / "text.txt", Characters("abn"), folder / "tokens.bin")
    >>> file.dtype, file.tokenizer, file.read(0, 3)
    ('uint16', 'Characters', array([1, 0, 2], dtype=uint16))
    """
    tokenizers.check(_CALLER, tokenizer)
    piece = checks.integer(_CALLER, "piece", piece, least=1)
    several = [paths] if isinstance(paths, (str, bytes, os.PathLike)) else list(paths)
    if not several:
        raise checks.error(_CALLER, "paths must hold at least one file, got none")
    written = {os.path.realpath(out), os.path.realpath(f"{os.fspath(out)}.json")}
    for path in several:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{_CALLER}: paths must be text files, got {checks.shown(path)}")
        if os.path.realpath(path) in written:
            raise checks.error(_CALLER, f"out must be another file than the texts, got {path} as both")
        if not os.stat(path).st_size:
            raise checks.error(_CALLER, f"{path} must not be empty")
    if dtype is None:
        size = tokenizers.size_of(tokenizer)
        dtype = "uint16" if size is not None and size <= 65536 else "uint32"
    if end_token is not None:
        end_token = checks.integer(_CALLER, "end_token", end_token, least=0)

    def tokens() -> Iterator[Any]:
        for path in several:
            for text in pieces(_CALLER, Path(path), piece):
                yield tokenizers.tokens_of(tokenizer, text)
            if end_token is not None:
                yield [end_token]

    return TokenFile.write(out, tokens(), dtype=dtype, tokenizer=tokenizers.name_of(tokenizer))


def pieces(caller: str, path: Path, size: int) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces of about `size` characters that end where words end.

    A byte-order mark at the beginning is left out.

    Raises:
        ValueError: if the file is not UTF-8, with the position of the byte.
    """
    text, rest, read, first = "", b"", 0, True
    with path.open("rb") as file:
        while True:
            data = file.read(size)
            rest, read = rest + data, read + len(data)
            try:
                more, used = codecs.utf_8_decode(rest, "strict", not data)
            except UnicodeDecodeError as error:
                position = read - len(rest) + error.start
                raise checks.error(
                    caller, f"{path} must be UTF-8, got byte {rest[error.start]:#04x} at position {position}"
                ) from None
            if first and more:
                more, first = more.removeprefix(_MARK), False
            text, rest = text + more, rest[used:]
            if not data:
                break
            if len(text) > size:
                end = _end(text)
                yield text[:end]
                text = text[end:]
    if text:
        yield text


def _end(text: str) -> int:
    for pattern in _ENDS:
        found = pattern.match(text)
        if found and found.end():
            return found.end()
    return len(text)
