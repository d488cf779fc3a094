"""Hyperparameters as functions of a count: `schedule(count) -> value`.

A schedule takes the number of updates made so far, an int or a 0-d array, and returns a 0-d float32 array.
It is pure and traceable, so one compiled step serves every count.
"""

from purestep.schedules.cycles import cosine_onecycle as cosine_onecycle
from purestep.schedules.cycles import linear_onecycle as linear_onecycle
from purestep.schedules.cycles import sgdr as sgdr
from purestep.schedules.decay import exponential_decay as exponential_decay
from purestep.schedules.decay import piecewise_constant as piecewise_constant
from purestep.schedules.decay import piecewise_interpolate as piecewise_interpolate
from purestep.schedules.decay import polynomial as polynomial
from purestep.schedules.standard import constant as constant
from purestep.schedules.standard import cosine_decay as cosine_decay
from purestep.schedules.standard import join_schedules as join_schedules
from purestep.schedules.standard import linear as linear
from purestep.schedules.standard import warmup_cosine_decay as warmup_cosine_decay
from purestep.schedules.warmup import inverse_sqrt as inverse_sqrt
from purestep.schedules.warmup import warmup_constant as warmup_constant
from purestep.schedules.warmup import warmup_cosine as warmup_cosine
from purestep.schedules.warmup import warmup_exponential_decay as warmup_exponential_decay
from purestep.schedules.warmup import warmup_linear_decay as warmup_linear_decay
from purestep.schedules.warmup import warmup_stable_decay as warmup_stable_decay
