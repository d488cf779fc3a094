"""Losses on completions that people preferred or rejected."""
