"""The machine: its chips, its memory, and how fast it is."""
