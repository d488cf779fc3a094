"""Functions of layers whose gradients are their own: cheaper, or more accurate, than those MLX derives."""
