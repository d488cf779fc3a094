"""The laws of gradient transforms, by kind."""
