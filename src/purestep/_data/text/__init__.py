"""Batches of text: windows, files, packing, records."""
