"""Losses of preferred and rejected completions."""
