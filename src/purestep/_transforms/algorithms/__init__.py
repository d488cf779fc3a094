"""Optimizers: one file per algorithm, with its `scale_by_*` and its optimizers."""
