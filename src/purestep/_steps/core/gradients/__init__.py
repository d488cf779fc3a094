"""The loss over a batch and its gradient: of one part, of microbatches in turn, and of the whole."""
