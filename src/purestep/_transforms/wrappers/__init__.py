"""Transforms that take a transform and return one."""
