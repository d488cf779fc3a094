"""One state in one file, in several, or in bytes; weights that other programs wrote."""
