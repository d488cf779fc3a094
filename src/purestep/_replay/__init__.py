"""Steps that gave a NaN or an infinity: recorded, repeated, explained."""
