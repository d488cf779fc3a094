"""Policy gradients from sampled completions."""
