"""Tables and lines."""

import argparse

import pytest

from benchmarks.harness import facts_lines, names, note, positive, seconds, table


def test_a_table_aligns_its_columns_and_all_lines_are_equally_long():
    lines = table(["name", "ms"], [["a", "1.5"], ["longer", "12.25"]]).splitlines()
    assert lines == ["name       ms", "-------------", "a         1.5", "longer  12.25"]


def test_facts_stay_within_a_hundred_columns():
    text = facts_lines({f"fact{i}": "x" * 20 for i in range(12)})
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("fact") == 12


def test_progress_is_on_standard_error_alone_and_passing_notes_only_on_a_terminal(capsys):
    note("round 1", passing=True)
    note("first steps")
    assert capsys.readouterr() == ("", "first steps\n")


def test_counts_and_names_are_read_from_the_command_line():
    assert positive("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="must be at least 1, got 0"):
        positive("0")
    assert seconds("2.5") == 2.5
    for wrong in ("-1", "inf", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a finite number of at least 0 seconds"):
            seconds(wrong)
    assert names("torch fused; purestep, packed;") == ["torch fused", "purestep, packed"]
