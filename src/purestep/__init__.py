"""Training as a pure function on MLX: `step(state, batch) -> (state, metrics)`."""

from purestep import checkpoint as checkpoint
from purestep import data as data
from purestep import losses as losses
from purestep import optimizers as optimizers
from purestep import rng as rng
from purestep import schedules as schedules
from purestep import transforms as transforms
from purestep import tree as tree
from purestep.functional import functional as functional
from purestep.mean import Mean as Mean
from purestep.state import TrainState as TrainState
from purestep.steps.compile import compiled as compiled
from purestep.steps.evaluate import eval_step as eval_step
from purestep.steps.train import train_step as train_step
from purestep.transforms.base import GradientTransform as GradientTransform
from purestep.transforms.base import apply_updates as apply_updates
from purestep.transforms.base import identity as identity
from purestep.transforms.combining import chain as chain

__version__ = "0.1.0"
