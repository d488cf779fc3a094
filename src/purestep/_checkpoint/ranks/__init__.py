"""Checkpoints that several processes write together: who writes what, and how they agree."""
