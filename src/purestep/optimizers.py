"""Optimizers: chains of gradient transforms that include the learning rate.

The sections of `__all__` are the table of contents.
"""

from functools import partial

from purestep._transforms.algorithms.adagrad.adadelta import adadelta
from purestep._transforms.algorithms.adagrad.adafactor import adafactor
from purestep._transforms.algorithms.adagrad.adagrad import adagrad
from purestep._transforms.algorithms.adagrad.rmsprop import rmsprop
from purestep._transforms.algorithms.adagrad.sm3 import sm3
from purestep._transforms.algorithms.adam.adabelief import adabelief
from purestep._transforms.algorithms.adam.adam import adam, adamw, nadam, nadamw
from purestep._transforms.algorithms.adam.adamax import adamax, adamaxw
from purestep._transforms.algorithms.adam.adan import adan
from purestep._transforms.algorithms.adam.ademamix import ademamix, simplified_ademamix
from purestep._transforms.algorithms.adam.adopt import adopt
from purestep._transforms.algorithms.adam.amsgrad import amsgrad
from purestep._transforms.algorithms.adam.novograd import novograd
from purestep._transforms.algorithms.adam.radam import radam
from purestep._transforms.algorithms.adam.sophia import sophia
from purestep._transforms.algorithms.adam.yogi import yogi
from purestep._transforms.algorithms.automatic.dadapt import dadapt_adamw
from purestep._transforms.algorithms.automatic.dog import dog
from purestep._transforms.algorithms.automatic.dowg import dowg
from purestep._transforms.algorithms.automatic.prodigy import prodigy
from purestep._transforms.algorithms.automatic.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep._transforms.algorithms.layerwise.fromage import fromage
from purestep._transforms.algorithms.layerwise.muon import muon
from purestep._transforms.algorithms.layerwise.mup import mup
from purestep._transforms.algorithms.layerwise.trust_ratio import lamb, lars
from purestep._transforms.algorithms.momentum.lion import lion
from purestep._transforms.algorithms.momentum.madgrad import madgrad
from purestep._transforms.algorithms.momentum.optimistic import (
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
)
from purestep._transforms.algorithms.momentum.polyak import polyak_sgd
from purestep._transforms.algorithms.momentum.rprop import rprop
from purestep._transforms.algorithms.momentum.sgd import noisy_sgd, sgd
from purestep._transforms.algorithms.momentum.sign import sign_sgd, signum
from purestep._transforms.core.arguments import refuse_unknown

__all__ = [
    # Adam and its relatives
    "adabelief",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "nadam",
    "nadamw",
    "novograd",
    "radam",
    "simplified_ademamix",
    "sophia",
    "yogi",
    # Second moments without momentum
    "adadelta",
    "adafactor",
    "adagrad",
    "rmsprop",
    "sm3",
    # Momentum and signs
    "lion",
    "madgrad",
    "noisy_sgd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
    # Layer by layer
    "fromage",
    "lamb",
    "lars",
    "muon",
    "mup",
    # Automatic learning rates
    "dadapt_adamw",
    "dog",
    "dowg",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_sgd",
]

refuse_unknown(globals(), __all__)
__dir__ = partial(sorted, __all__)
