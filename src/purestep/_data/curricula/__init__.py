"""Sources made of sources: mixtures, stages, curricula."""
