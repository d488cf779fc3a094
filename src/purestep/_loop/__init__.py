"""The loop around a pure step: run, fit, callbacks and configuration."""
