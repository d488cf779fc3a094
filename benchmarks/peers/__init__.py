"""Contestants of `transformer`, `optimizer` and `cpu`, one framework a file."""
