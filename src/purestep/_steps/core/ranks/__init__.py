"""What the processes that compute one step together sum and divide."""
