"""Gradients divided by a root of their squares, without a mean of gradients."""
