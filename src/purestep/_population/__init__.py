"""Populations: several members trained by one step."""
