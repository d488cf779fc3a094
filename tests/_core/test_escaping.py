"""Text that is safe to show: nothing in it is obeyed by a terminal, hidden, or lost."""

import unicodedata

import pytest

from purestep._core.escaping import encodable, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b]8;;http://a\x1b\\link", r"\x1b]8;;http://a\x1b\link"),
        ("a\nb\rc\td\x7f", r"a\nb\rc\td\x7f"),
        ("\x80\x9b31m\x9d", r"\x80\x9b31m\x9d"),
        ("a\u202eb\u2066c\u200e\u061c", r"a\u202eb\u2066c\u200e\u061c"),
        ("a\u200bb\u200dc\ufeff", r"a\u200bb\u200dc\ufeff"),
        ("\u2028\u2029\xa0", r"\u2028\u2029\xa0"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\u3164\ufe0f\U000e0100\u2800", r"\u3164\ufe0f\U000e0100\u2800"),
        ("größe 大きさ λ [red] :smile:", "größe 大きさ λ [red] :smile:"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_no_character_of_unicode_is_obeyed():
    shown = set(printable("".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE0200), 0xF0000, 0x10FFFF]))))
    kinds = {unicodedata.category(character) for character in shown}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {character for character in shown if character.isspace()} == {" "}


def test_what_is_not_text_is_shown_as_str_does():
    assert printable(ValueError("a\x1b")) == r"a\x1b"
    assert printable(3) == "3"


def test_lines_are_kept_and_tabs_are_spaces():
    assert printable_lines("a\tb\n\x1bc\n") == "a    b\n\\x1bc\n"


def test_an_encoding_gets_what_it_can_take():
    assert encodable("┏━┓│─└ █ … • größe 大", "ascii") == r"+-+|-+ # ... * gr\xf6\xdfe \u5927"
    assert encodable("größe ━ 大", "latin-1") == r"größe - \u5927"
    assert encodable("━ größe", "utf-8") == "━ größe"
