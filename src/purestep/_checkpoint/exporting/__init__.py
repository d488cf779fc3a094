"""Whole models as other programs read them: weights, configuration and tokenizer in one directory."""
