"""The foundations: types, checks, trees, means, accurate sums, random keys, MLX's graph."""
