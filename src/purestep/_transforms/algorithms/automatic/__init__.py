"""Optimizers that set their own learning rate or need no schedule."""
