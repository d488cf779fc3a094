"""Adam and its relatives: a running mean of gradients over a root of running squares."""
