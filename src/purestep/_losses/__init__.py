"""Loss functions and objectives: pure functions of arrays."""
