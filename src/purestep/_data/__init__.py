"""Batches as functions of the step or of the state."""
