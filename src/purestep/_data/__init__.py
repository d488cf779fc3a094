"""Sources of batches, text, and sampling from a model."""
