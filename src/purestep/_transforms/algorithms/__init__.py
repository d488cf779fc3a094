"""Optimizers: one file an algorithm, its `scale_by_*` and its optimizers together."""
