"""Small transforms from which optimizers are chained."""
