"""Sources made of iterables and streams."""
