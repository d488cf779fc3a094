"""Low-rank adapters: layers, their placement in a module, their files."""
