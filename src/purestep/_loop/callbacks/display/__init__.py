"""The live line of a run, and lines where there is no terminal."""
