"""Sampling from a model, and on-policy batches."""
