"""What every kind of step shares."""
