"""`fit`: evaluation, checkpoints, callbacks and resuming around `run`."""
