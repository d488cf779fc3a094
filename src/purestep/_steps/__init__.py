"""Training and evaluation steps, and the state they map."""
