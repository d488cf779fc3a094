"""Steps that went wrong, kept and run again."""

from purestep.replay.bundle import Bundle as Bundle
from purestep.replay.bundle import load as load
from purestep.replay.explaining import Nonfinite as Nonfinite
from purestep.replay.explaining import Report as Report
from purestep.replay.explaining import Stage as Stage
from purestep.replay.explaining import explain as explain
from purestep.replay.recording import Recorder as Recorder
from purestep.replay.recording import ReplayWarning as ReplayWarning
from purestep.replay.recording import record as record
