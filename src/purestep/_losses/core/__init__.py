"""Checks, weights and arithmetic that losses share."""
