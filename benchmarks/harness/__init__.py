"""What every benchmark shares: processes, turns, a time limit, statistics, tables, pictures, records."""

from benchmarks.harness.groups import Ended, on_cuda, run_group
from benchmarks.harness.limits import Limit, StoppedError
from benchmarks.harness.machine import Machine, cores, facts, openblas
from benchmarks.harness.pictures import Bar, Panel, bars, sizes
from benchmarks.harness.processes import ContestantError, Worker, at_once, race, take_turns, workers
from benchmarks.harness.records import Record
from benchmarks.harness.statistics import Spread, fastest, milliseconds, ratio, timed
from benchmarks.harness.team import Contestant, Team
from benchmarks.harness.text import facts_lines, names, note, positive, seconds, table

__all__ = [
    # Processes
    "ContestantError",
    "Worker",
    "workers",
    "at_once",
    "race",
    "take_turns",
    "Contestant",
    "Team",
    "Ended",
    "run_group",
    "on_cuda",
    # Time
    "Limit",
    "StoppedError",
    # Figures
    "Spread",
    "fastest",
    "milliseconds",
    "ratio",
    "timed",
    # The machine
    "Machine",
    "facts",
    "cores",
    "openblas",
    # Output
    "Record",
    "Bar",
    "Panel",
    "bars",
    "sizes",
    "facts_lines",
    "table",
    "names",
    "note",
    "positive",
    "seconds",
]
