"""Batches of arrays: shuffled, mixed, mapped, by length, by difficulty."""
