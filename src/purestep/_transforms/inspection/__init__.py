"""Read what transforms keep in their states."""
