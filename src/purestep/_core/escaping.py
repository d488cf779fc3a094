"""Escaping of text from files, paths, arguments and errors for a terminal."""

# Characters that are printable for Python but invisible on a terminal.
_INVISIBLE = frozenset(
    [
        0x034F,  # combining grapheme joiner
        *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers
        *(0x17B4, 0x17B5),  # Khmer inherent vowels
        *(0x180B, 0x180C, 0x180D, 0x180F),  # Mongolian variation selectors
        0x2800,  # braille without a dot
        *range(0xFE00, 0xFE10),  # variation selectors
        *range(0xE0100, 0xE01F0),
    ]
)
# ASCII for the marks that this library prints, for an output that cannot encode them.
_ASCII = {"…": "...", "•": "*", "→": "->"}
_VERTICAL = frozenset("│┃┆┇┊┋║╎╏")
_LINES, _BLOCKS = range(0x2500, 0x2580), range(0x2580, 0x25A0)
_STRAIGHT = frozenset("─━┄┅┈┉═╌╍╴╸╺╶╼╾")


def printable(value: object) -> str:
    r"""Return text in one line, with control characters and invisible characters escaped.

    These characters are escaped: control characters (ESC, newline, C1), marks that reorder text, characters
    without a width, separators other than the space, surrogates, private and unassigned characters.

    Args:
        value: any value; `str` converts it to text.

    >>> print(printable("layer\x1b[2J\u202e.weight"))
    layer\x1b[2J\u202e.weight
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character.isprintable() and ord(character) not in _INVISIBLE else _escaped(character)
        for character in text
    )


def printable_lines(value: object) -> str:
    r"""Return text with each line escaped by `printable`. A tab becomes four spaces.

    >>> print(printable_lines("a\tb\n\x07"))
    a    b
    \x07
    """
    return "\n".join(map(printable, str(value).replace("\t", "    ").split("\n")))


def encodable(text: str, encoding: str) -> str:
    r"""Return text that an encoding can represent.

    Of the characters that it lacks, lines, blocks, `…`, `•` and `→` become ASCII and others are escaped.

    >>> print(encodable("│ größe … │", "ascii"))
    | gr\xf6\xdfe ... |
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_fitted(character, encoding) for character in text)
    return text


def _fitted(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        code = ord(character)
        if code in _LINES:
            return "|" if character in _VERTICAL else "-" if character in _STRAIGHT else "+"
        return "#" if code in _BLOCKS else _ASCII.get(character) or _escaped(character)
    return character


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
