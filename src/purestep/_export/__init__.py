"""Steps as files that MLX runs without Python."""
