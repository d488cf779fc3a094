"""`run`: batches prepared ahead, steps dispatched ahead."""
