"""Training and evaluation steps, and the state of a training run."""
