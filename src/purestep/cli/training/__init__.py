"""The parts of the command `train`."""
