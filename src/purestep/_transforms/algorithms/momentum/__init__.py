"""Gradient descent, momentum, and updates made of signs."""
