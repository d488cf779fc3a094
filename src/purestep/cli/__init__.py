"""The command line, `python -m purestep`."""
