"""The rows of one process of several."""
