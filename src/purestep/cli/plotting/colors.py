"""The colors of runs, told apart in print and by readers who see few colors."""

COLORS = ("#1f5fa8", "#d1622b", "#2e8b57", "#7a4fa3", "#b3293f", "#1b8a94", "#8a6d1f", "#555555")
STYLES = ("-", "--", ":", "-.")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # the same styles, in an SVG
