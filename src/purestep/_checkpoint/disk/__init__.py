"""Files on disk: locks, renames, reading and writing arrays."""
