"""Trackers: the rows, texts, pictures and checkpoints of a run in other programs' formats."""
