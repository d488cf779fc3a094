"""What a traced function leaves in MLX's graph: own gradients, order, recomputation."""
