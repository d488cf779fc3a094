"""Benchmarks: `python -m benchmarks NAME`. Each contestant runs in a process of its own."""
