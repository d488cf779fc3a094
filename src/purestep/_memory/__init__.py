"""The memory of a training step: predicted before anything is allocated, and limited."""
