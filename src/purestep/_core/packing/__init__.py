"""Trees of arrays as few vectors, and the way back."""

from purestep._core.packing.shards import Shard as Shard
from purestep._core.packing.shards import is_marker as is_marker
from purestep._core.packing.shards import padded as padded
from purestep._core.packing.shards import part as part
from purestep._core.packing.shards import part_size as part_size
from purestep._core.packing.shards import shard_class as shard_class
from purestep._core.packing.shards import shards_in as shards_in
from purestep._core.packing.trees import Packed as Packed
from purestep._core.packing.trees import class_for as class_for
from purestep._core.packing.trees import holds_packed as holds_packed
from purestep._core.packing.trees import known_classes as known_classes
from purestep._core.packing.trees import packed_like as packed_like
from purestep._core.packing.trees import uniform as uniform
from purestep._core.packing.trees import unpacked as unpacked
from purestep._core.packing.trees import viewed as viewed
