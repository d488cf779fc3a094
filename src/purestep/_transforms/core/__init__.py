"""The contract of a gradient transform, chains of them, and the arithmetic they share."""
