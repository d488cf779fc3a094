"""Batches as functions of the step."""

from purestep.data.source import Source as Source
from purestep.data.text import Characters as Characters
from purestep.data.text import RandomWindows as RandomWindows
from purestep.data.text import consecutive_windows as consecutive_windows
