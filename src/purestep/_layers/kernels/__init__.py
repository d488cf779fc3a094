"""Kernels for an NVIDIA GPU that layers use in compiled steps."""
