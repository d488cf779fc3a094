"""Steps that several processes compute together."""
