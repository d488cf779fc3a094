"""What is trained, updated and stored: models, steps, states, tokens."""
