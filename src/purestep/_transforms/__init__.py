"""Gradient transforms and optimizers."""
