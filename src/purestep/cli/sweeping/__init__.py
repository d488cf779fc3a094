"""Sweeps: a grid of settings, and its runs."""
