"""The operations of a function, read without evaluating anything."""
