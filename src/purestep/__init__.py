"""Training as a pure function on MLX: `step(state, batch) -> (state, metrics)`."""

from purestep import checkpoint as checkpoint
from purestep import data as data
from purestep import losses as losses
from purestep import optimizers as optimizers
from purestep import replay as replay
from purestep import rng as rng
from purestep import schedules as schedules
from purestep import transforms as transforms
from purestep import tree as tree
from purestep._modules.bridge import functional as functional
from purestep._modules.writing import write_back as write_back
from purestep.mean import Mean as Mean
from purestep.mean import MeanSum as MeanSum
from purestep.state import TrainState as TrainState
from purestep.steps.cached_contrastive import cached_contrastive_step as cached_contrastive_step
from purestep.steps.compile import NotCompiledWarning as NotCompiledWarning
from purestep.steps.compile import compiled as compiled
from purestep.steps.evaluate import eval_step as eval_step
from purestep.steps.evaluate import evaluate as evaluate
from purestep.steps.loss_scaled import loss_scaled_step as loss_scaled_step
from purestep.steps.sam import sam_step as sam_step
from purestep.steps.train import train_step as train_step
from purestep.transforms.base import GradientTransform as GradientTransform
from purestep.transforms.base import apply_updates as apply_updates
from purestep.transforms.base import identity as identity
from purestep.transforms.combining import chain as chain
from purestep.transforms.evaluation import eval_params as eval_params
from purestep.transforms.hyperparameters import hyperparameters as hyperparameters
from purestep.transforms.hyperparameters import set_hyperparameters as set_hyperparameters

__version__ = "0.1.0"
