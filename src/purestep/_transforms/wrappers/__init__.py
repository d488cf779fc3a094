"""Functions that take a transform and return a transform."""
