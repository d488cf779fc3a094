"""The foundations: types, checks, trees, means, exact sums, random keys, MLX's graph."""
