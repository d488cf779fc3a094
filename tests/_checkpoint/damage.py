"""Damage to files."""

from pathlib import Path


def flip(path: Path, offset: int = -1) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
