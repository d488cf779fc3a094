"""Measurements of states and gradients."""
