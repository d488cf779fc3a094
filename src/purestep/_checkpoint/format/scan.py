"""Scan JSON as text, so that hostile JSON takes no memory before it is refused.

Python objects take ten to twenty times the memory of their JSON text. A header is therefore checked as text,
and only a valid header is parsed into objects.
"""

import json
import re
from collections.abc import Iterator, Sequence

Text = bytes | bytearray | memoryview

# Possessive quantifiers: a long string takes no memory for backtracking.
STRING = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_BLANK = rb"[ \t\n\r]*+"
_OPEN = re.compile(rb"\{" + _BLANK + rb"(?:(\})" + _BLANK + rb")?")
_NAME = re.compile(rb"(" + STRING + rb")" + _BLANK + rb":" + _BLANK)
_NEXT = re.compile(_BLANK + rb"(?:,|(\}))" + _BLANK)
_ASCII = re.compile(rb'"([^"\\\x00-\x1f\x80-\xff]{0,1000})"')
_SCALAR = re.compile(STRING + rb"|true|false|null|-?[0-9][-+.0-9eE]*+|-?Infinity|NaN")
_COUNTED = re.compile(STRING + rb"|[,:\[{]")
# A whole list or object that holds no deeper one than its own members, such as the description of an array.
_INNER = rb'(?:[^"\[\]{}]++|' + STRING + rb")*+"
_SHALLOW = rb"[\[{]" + _INNER + rb"(?:[\[{]" + _INNER + rb"[\]}]" + _INNER + rb")*+[\]}]"
_WHOLE = re.compile(_SHALLOW)
_TOKEN = re.compile(_SHALLOW + rb"|" + STRING + rb'|["\[\]{}]')
# A member, as it is written most often, and the comma after it.
_MEMBER = re.compile(rb'"([^"\\\x00-\x1f\x80-\xff]{0,1000})":(' + STRING + rb"|" + _SHALLOW + rb")," + _BLANK)
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_PIECE = re.compile(rb'(?:[^"\\\x00-\x1f]{1,64}+|' + _PAIR + rb"|\\u[0-9a-fA-F]{4}|\\[^u]){1,512}+")
_SHORT = 1 << 16
_LONGEST_NAME = 130_000  # bytes of a name or key; saved paths are shorter
_DEEPEST = 500


class ScanError(ValueError):
    """A text is not valid JSON, or not the expected JSON."""


def members(data: Text, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Yield the key of each member of a JSON object, and where its value starts and stops.

    Raises:
        ScanError: at the first place where the text is not an object.

    >>> [(key, text[start:stop]) for text in [b'{"a": [1, "]"], "b":null}']
    ...     for key, start, stop in members(text, 0, len(text))]
    [('a', b'[1, "]"]'), ('b', b'null')]
    """
    found = _OPEN.match(data, start, stop)
    while found:
        at = found.end()
        if found[1]:
            if at != stop:
                raise ScanError("it goes on after its end")
            return
        found = _MEMBER.match(data, at, stop)
        while found:
            yield found[1].decode(), *found.span(2)
            at = found.end()
            found = _MEMBER.match(data, at, stop)
        found = _NAME.match(data, at, stop)
        if not found or found.end() - at > _LONGEST_NAME:
            raise ScanError("it has no name, or a long one")
        last = skip(data, found.end(), stop)
        yield string(data, *found.span(1)), found.end(), last
        found = _NEXT.match(data, last, stop)
    raise ScanError("it is no object")


def skip(data: Text, at: int, stop: int) -> int:
    """Return the end of the JSON value that starts here; brackets within it are counted, not matched."""
    found = _SCALAR.match(data, at, stop)
    if found:
        return found.end()
    if data[at : at + 1] not in (b"[", b"{"):
        raise ScanError("it has no value")
    found = _WHOLE.match(data, at, stop)
    if found:
        return found.end()
    depth = 0
    for found in _TOKEN.finditer(data, at, stop):
        if found.end() - found.start() > 1:
            continue
        kind = data[found.start()]
        if kind == 0x22 or depth > _DEEPEST:
            break
        depth += 1 if kind in b"[{" else -1
        if depth == 0:
            return found.end()
    raise ScanError("it is cut or too deep")


def count(data: Text, start: int, stop: int) -> int:
    """Return an upper bound of the number of values, from the commas, colons and brackets."""
    return 1 + sum(data[found.start()] != 0x22 for found in _COUNTED.finditer(data, start, stop))


def string(data: Text, start: int, stop: int) -> str:
    """Decode a JSON string."""
    plain = _ASCII.fullmatch(data, start, stop)
    if plain:
        return plain[1].decode()
    return text(utf8(data, start, stop))


def utf8(data: Text, start: int, stop: int) -> bytes | bytearray:
    """Decode a JSON string to UTF-8, in little more memory than its size."""
    try:
        if stop - start <= _SHORT:
            said = json.loads(bytes(data[start:stop]).decode())
            if type(said) is not str:
                raise ScanError("it is no string")
            return said.encode("utf-8", "surrogatepass")
        found, filled, at = (
            bytearray(stop - start),
            0,
            start + 1,
        )  # a decoded string is not longer than its text
        while at < stop - 1:
            piece = _PIECE.match(data, at, stop - 1)
            if not piece:
                raise ScanError("it is no string")
            said = json.loads(b'"' + piece[0] + b'"').encode("utf-8", "surrogatepass")
            found[filled : filled + len(said)] = said
            filled += len(said)
            at = piece.end()
        del found[filled:]
    except ScanError:
        raise
    except ValueError:
        raise ScanError("it is no string, or not UTF-8") from None
    return found


def text(data: bytes | bytearray) -> str:
    """Decode UTF-8; refuse a string for which Python would need several times its size."""
    if len(data) > _SHORT and not data.isascii():
        widest = 4 if max(data) >= 0xF0 else 2
        characters = len(data) - sum(map(data.count, range(0x80, 0xC0)))
        if characters * widest > len(data) + _SHORT:
            raise ScanError("it has a long string of narrow and wide characters")
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeError:
        raise ScanError("it is not UTF-8") from None


def distinct(hashes: Sequence[int]) -> bool:
    """Tell whether all numbers are different; not all of them become objects at once."""
    if len(hashes) <= 1000:
        return len({*hashes}) == len(hashes)
    parts = 16
    for part in range(parts):
        seen: set[int] = set()
        for number in hashes:
            if number % parts == part:
                if number in seen:
                    return False
                seen.add(number)
    return True
