"""Losses over vocabularies and sequences of tokens."""
