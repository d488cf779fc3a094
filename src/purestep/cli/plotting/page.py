"""Charts as one page of HTML that works without a network."""

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk import atomic
from purestep._core.escaping import printable
from purestep.cli.plotting.charts import Charts, setting_text, thinned
from purestep.cli.plotting.reading import RunFiles, differences
from purestep.cli.plotting.scales import COLORS, DASHES

_TEMPLATE = "page.html"
_PLACE = "@DATA@"
_CLOCKS = ("tokens", "samples", "seconds")  # what a step can be counted in
_POINTS = 1000  # of a clock
# The content of a script element ends at `</script`, and an old parser ends lines at these separators.
_ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def write(path: Path, charts: Charts, runs: Sequence[RunFiles]) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    atomic.write_text(path, page(charts, runs))


def page(charts: Charts, runs: Sequence[RunFiles]) -> str:
    """Return the page. Names and notes are data in it, never markup."""
    template = resources.files("purestep.cli.plotting").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    before, after = template.split(_PLACE)
    return before + embedded(_plain(charts, runs)) + after


def embedded(value: Any) -> str:
    """Return JSON that may stand within a script element.

    >>> embedded({"name": "</script>"})
    '{"name": "\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False)
    return "".join(_ESCAPES.get(character, character) for character in text)


def _plain(charts: Charts, runs: Sequence[RunFiles]) -> dict[str, Any]:
    return {
        "labels": list(map(printable, charts.labels)),
        "names": [printable(run.name) for run in runs],
        "colors": list(COLORS),
        "dashes": list(DASHES),
        "clocks": _clocks(runs),
        "settings": [
            [printable(name), [printable(setting_text(value)) for value in values]]
            for name, values in differences(runs).items()
        ],
        "curves": [
            {
                "title": printable(chart.title),
                "limits": chart.limits,
                "lines": [
                    {
                        **line._asdict(),
                        "figure": printable(line.figure),
                        "values": list(map(_finite, line.values)),
                    }
                    for line in chart.lines
                ],
            }
            for chart in charts.curves
        ],
        "heats": [
            {
                "title": printable(heat.title),
                "run": heat.run,
                "layers": list(map(printable, heat.layers)),
                "steps": heat.steps,
                "values": [list(map(_finite, row)) for row in heat.values],
            }
            for heat in charts.heats
        ],
        "notes": list(map(printable, charts.notes)),
    }


def _clocks(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Return for each clock the steps and its values in every run; only clocks that all runs have."""
    found = {}
    for name in _CLOCKS:
        columns = [run.rows.column(name) for run in runs]
        if columns and all(len(steps) > 1 and all(map(math.isfinite, values)) for steps, values in columns):
            found[name] = [thinned(steps, values, _POINTS) for steps, values in columns]
    return found


def _finite(value: float) -> float | None:
    """Return a number in few digits, or `None` for a gap: JSON has no NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
