"""Low-rank adapters of a module's layers: added, reported, merged, saved and loaded."""
