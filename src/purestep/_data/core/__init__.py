"""The protocol of sources, permutations, and checks on rows."""
