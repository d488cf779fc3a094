"""The group of processes of a step."""

from purestep._core.collective import group_of as group_of
