"""Measurements of states and gradients."""

from purestep.metrics.finite import nonfinite_paths as nonfinite_paths
