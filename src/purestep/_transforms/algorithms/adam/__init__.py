"""Adam and its variants: a running mean of gradients, divided by the root of a running mean square."""
