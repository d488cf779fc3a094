"""Optimizers: named chains of transforms."""

from purestep.optimizers.adam import adam as adam
from purestep.optimizers.adam import adamw as adamw
from purestep.optimizers.sgd import sgd as sgd
