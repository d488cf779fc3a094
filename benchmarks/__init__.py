"""Benchmarks: `python -m benchmarks NAME`. Each contestant runs in a process of its own.

A module of a benchmark defines:

- `add_arguments(parser)`: its own options.
- `measure(options, record, limit)`: measures, and calls `record.keep` with `facts` first, then after each
  round.
- `show(found)`, `panels(found)`, `missed(found)`: the tables, the picture, and the failures and missed
  targets of a record. A record may be partial: a contestant may have no times yet.
"""
