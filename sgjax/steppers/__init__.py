"""Learned simulators: networks that step a state, and the objectives that train them."""

from sgjax.steppers._base import AbstractStepper as AbstractStepper
from sgjax.steppers._base import FrameShape as FrameShape
from sgjax.steppers._base import Situation as Situation
from sgjax.steppers._base import StepperNetwork as StepperNetwork
from sgjax.steppers._build import ARCHITECTURES as ARCHITECTURES
from sgjax.steppers._build import for_study as for_study
from sgjax.steppers._build import next_state_of as next_state_of
from sgjax.steppers._build import stepper_of as stepper_of
from sgjax.steppers._build import with_objective as with_objective
from sgjax.steppers.convolution import Convolution as Convolution
from sgjax.steppers.interaction import Interaction as Interaction
from sgjax.steppers.mlp import MLP as MLP
from sgjax.steppers.objectives import AbstractObjective as AbstractObjective
from sgjax.steppers.objectives import OneStep as OneStep
from sgjax.steppers.objectives import Pushforward as Pushforward
from sgjax.steppers.objectives import Unroll as Unroll
