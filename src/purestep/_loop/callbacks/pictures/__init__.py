"""Pictures of training curves."""
