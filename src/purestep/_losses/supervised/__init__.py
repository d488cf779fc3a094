"""Losses against labels, numbers or other embeddings."""
