"""The command line: what `python -m purestep` understands."""
