"""What everything else stands on: types, checks, trees, means, exact sums, random keys, MLX's graph."""
