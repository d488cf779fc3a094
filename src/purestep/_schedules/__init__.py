"""Schedules: functions from a step count to a value."""
