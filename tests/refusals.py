"""Values that every argument for a finite number refuses, with the error and the rule it states."""

import mlx.core as mx

BAD_NUMBERS = [
    (float("nan"), ValueError, "must be finite, got nan"),
    (float("inf"), ValueError, "must be finite, got inf"),
    ("1", TypeError, "must be a number, got '1'"),
    (True, TypeError, "must be a number, got True"),
    (None, TypeError, "must be a number, got None"),
    (mx.ones(2), ValueError, "must be a number or a 0-d array, got shape (2,)"),
]
