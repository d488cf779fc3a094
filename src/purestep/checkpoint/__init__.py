"""Storage of states: files, bytes, and the checkpoints of a run."""

from purestep.checkpoint.header import CorruptError as CorruptError
from purestep.checkpoint.keeping import KeepPolicy as KeepPolicy
from purestep.checkpoint.keeping import keep_any as keep_any
from purestep.checkpoint.keeping import keep_best as keep_best
from purestep.checkpoint.keeping import keep_every as keep_every
from purestep.checkpoint.keeping import keep_last as keep_last
from purestep.checkpoint.lock import LockedError as LockedError
from purestep.checkpoint.manager import Checkpointer as Checkpointer
from purestep.checkpoint.manager import Restored as Restored
from purestep.checkpoint.msgpack import from_bytes as from_bytes
from purestep.checkpoint.msgpack import to_bytes as to_bytes
from purestep.checkpoint.rates import HyperparameterWarning as HyperparameterWarning
from purestep.checkpoint.record import Moment as Moment
from purestep.checkpoint.record import Record as Record
from purestep.checkpoint.restore import RestoreWarning as RestoreWarning
from purestep.checkpoint.safetensors import load as load
from purestep.checkpoint.safetensors import save as save
from purestep.checkpoint.saving import SavePolicy as SavePolicy
from purestep.checkpoint.saving import save_any as save_any
from purestep.checkpoint.saving import save_every_seconds as save_every_seconds
from purestep.checkpoint.saving import save_every_steps as save_every_steps
from purestep.checkpoint.saving import save_on_best as save_on_best
from purestep.checkpoint.saving import save_on_signal as save_on_signal
from purestep.checkpoint.signals import signals as signals
from purestep.checkpoint.store import CorruptWarning as CorruptWarning
from purestep.checkpoint.weights import load_weights as load_weights
