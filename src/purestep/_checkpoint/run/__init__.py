"""The checkpoints of a run: when to save, which to keep, the `Checkpointer`."""
