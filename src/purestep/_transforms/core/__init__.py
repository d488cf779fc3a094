"""The contract of a gradient transform, chains of transforms, and the arithmetic they share."""
