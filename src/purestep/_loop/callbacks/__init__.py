"""The callbacks that are shipped."""
