"""What tests of refusals share: values that are refused, and the parts of an error that carry meaning."""

import re

import mlx.core as mx

# Values that every argument for a finite number refuses, with the error, and the rule and value it names.
BAD_NUMBERS = [
    (float("nan"), ValueError, "... finite, got nan"),
    (float("inf"), ValueError, "... finite, got inf"),
    ("1", TypeError, "... number, got '1'"),
    (True, TypeError, "... number, got True"),
    (None, TypeError, "... number, got None"),
    (mx.ones(2), ValueError, "... 0-d array, got shape (2,)"),
]


def parts(text: str) -> str:
    """Return the regular expression of an error that holds these parts; ` ... ` stands for any words.

    The parts are what the error must name: caller, argument, path, value, the key word of the rule. The
    sentence around them is free. A part is literal and does not begin or end inside a word; a caller
    (`name: `) begins the error.

    >>> rule = parts("scale: step_size ... 0, got -1")
    >>> bool(re.search(rule, "scale: step_size must be at least 0, got -1"))
    True
    >>> bool(re.search(rule, "scale: step_size must be at least 10, got -1"))
    False
    """
    start = "^" if re.match(r"[\w.]+: ", text) else ""
    words = r"[:,;]?\s(?:.*[\s(\['\"])?"
    return "(?s)" + start + words.join(re.escape(part) for part in text.split(" ... "))


def assert_listed(error: BaseException, *wanted: str) -> None:
    """Assert that the lines below an error's first are these, each by its `parts`, in any order."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    assert len(lines) == len(wanted), lines
    for text in wanted:
        assert sum(bool(re.match(parts(text), line)) for line in lines) == 1, (text, lines)
