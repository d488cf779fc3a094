"""From an `mlx.nn.Module` to pure functions and their arrays, and back."""
