"""Storage of states: files, bytes, and the checkpoints of a run."""
