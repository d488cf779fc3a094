"""Updates that depend on a whole layer: its norm, its width, its singular values."""
