"""What pictures, pages and terminals share: colors of runs, and numbers in few characters."""

COLORS = ("#1f5fa8", "#d1622b", "#2e8b57", "#7a4fa3", "#b3293f", "#1b8a94", "#8a6d1f", "#555555")
STYLES = ("-", "--", ":", "-.")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # the same styles, in an SVG


def compact(value: float, digits: int = 6) -> str:
    """Return a number in few characters.

    >>> compact(52000.0), compact(6.123e9, 3), compact(0.002), compact(1200.0), compact(1e-7)
    ('52k', '6.12G', '0.002', '1200', '1e-07')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 1e4 <= abs(value) < 1e15 and abs(value) >= size:
            return f"{value / size:.{digits}g}{prefix}"
    return f"{value:.{digits}g}"
