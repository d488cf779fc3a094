"""The bytes of a stored state: checksums, the seal, the description of a tree, a safetensors header."""
