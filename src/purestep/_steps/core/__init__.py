"""Code that all kinds of steps share."""
