"""Steps, and what wraps them."""
