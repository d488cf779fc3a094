"""Monitors: callbacks that watch memory, parameters and gradients while a run goes on."""
