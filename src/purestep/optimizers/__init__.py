"""Optimizers: named chains of transforms."""

from purestep.optimizers.adabelief import adabelief as adabelief
from purestep.optimizers.adadelta import adadelta as adadelta
from purestep.optimizers.adafactor import adafactor as adafactor
from purestep.optimizers.adagrad import adagrad as adagrad
from purestep.optimizers.adam import adam as adam
from purestep.optimizers.adam import adamw as adamw
from purestep.optimizers.adamax import adamax as adamax
from purestep.optimizers.adamax import adamaxw as adamaxw
from purestep.optimizers.adan import adan as adan
from purestep.optimizers.ademamix import ademamix as ademamix
from purestep.optimizers.ademamix import simplified_ademamix as simplified_ademamix
from purestep.optimizers.adopt import adopt as adopt
from purestep.optimizers.amsgrad import amsgrad as amsgrad
from purestep.optimizers.dadapt import dadapt_adamw as dadapt_adamw
from purestep.optimizers.distance import dog as dog
from purestep.optimizers.distance import dowg as dowg
from purestep.optimizers.fromage import fromage as fromage
from purestep.optimizers.lion import lion as lion
from purestep.optimizers.madgrad import madgrad as madgrad
from purestep.optimizers.misc import noisy_sgd as noisy_sgd
from purestep.optimizers.misc import optimistic_adam as optimistic_adam
from purestep.optimizers.misc import optimistic_adam_v2 as optimistic_adam_v2
from purestep.optimizers.misc import optimistic_gradient_descent as optimistic_gradient_descent
from purestep.optimizers.misc import polyak_sgd as polyak_sgd
from purestep.optimizers.muon import muon as muon
from purestep.optimizers.mup import mup as mup
from purestep.optimizers.nadam import nadam as nadam
from purestep.optimizers.nadam import nadamw as nadamw
from purestep.optimizers.novograd import novograd as novograd
from purestep.optimizers.prodigy import prodigy as prodigy
from purestep.optimizers.radam import radam as radam
from purestep.optimizers.rmsprop import rmsprop as rmsprop
from purestep.optimizers.rprop import rprop as rprop
from purestep.optimizers.schedule_free import schedule_free_adamw as schedule_free_adamw
from purestep.optimizers.schedule_free import schedule_free_sgd as schedule_free_sgd
from purestep.optimizers.sgd import sgd as sgd
from purestep.optimizers.sign import sign_sgd as sign_sgd
from purestep.optimizers.sign import signum as signum
from purestep.optimizers.sm3 import sm3 as sm3
from purestep.optimizers.sophia import sophia as sophia
from purestep.optimizers.trust_ratio import lamb as lamb
from purestep.optimizers.trust_ratio import lars as lars
from purestep.optimizers.yogi import yogi as yogi

from purestep.optimizers import arguments as arguments  # isort: skip

arguments.refuse_unknown(globals())
