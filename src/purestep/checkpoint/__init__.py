"""Storage of states: safetensors files and msgpack bytes, restored against a template."""

from purestep.checkpoint.msgpack import from_bytes as from_bytes
from purestep.checkpoint.msgpack import to_bytes as to_bytes
from purestep.checkpoint.safetensors import load as load
from purestep.checkpoint.safetensors import save as save
